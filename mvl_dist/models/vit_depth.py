"""ViT-Depth: the ViT grown to MedVisionLlama's size in width, blocks and heads (paper, Table 4).

The paper says 223.24 M parameters and 'increased embedding size, transformer blocks, and attention
heads'; it gives no sizes, and those of the published code make 257.7 M. Here the baseline's 64 wide
tokens become 768 wide with 12 heads of 64, which is ViT-Base's width, and the depth is the number
of blocks that then comes nearest: with 7.088 M a block and 3.933 M around them, 31 blocks make
223.657 M (0.19 % above the paper's figure), 32 would be 3 % above.

As factors on the baseline: 12 x width, 3 x heads, 2 x depth - 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mvl_dist.models.vit import ViTBaseline

if TYPE_CHECKING:
    from torch import nn

    from mvl_dist.models import ModelSpec


def build(spec: ModelSpec) -> nn.Module:
    """Build ViT-Depth for a baseline of `spec.config`."""
    base = spec.config
    grown = replace(
        base, width=12 * base.width, heads=3 * base.heads, depth=max(2 * base.depth - 1, 1)
    )
    return ViTBaseline(replace(spec, config=grown))
