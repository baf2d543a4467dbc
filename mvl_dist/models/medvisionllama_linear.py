"""MedVisionLlama with plain linear mappers around a wholly frozen block (paper, Table 5).

V_D1 and V_D2 are trained linears without a low-rank part, and the block has no adapters. The
paper's 6.78 M trainable parameters contain visualisation heads; without them it has 1,128,000 in
the ViT and 528,448 in the mappers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvl_dist.models import frozen
from mvl_dist.models.medvisionllama import MedVisionLlama

if TYPE_CHECKING:
    from torch import nn

    from mvl_dist.models import ModelSpec


def build(spec: ModelSpec) -> nn.Module:
    """Build MedVisionLlama (Linear) around `spec.donor`.

    Raises:
        UserError: a block that FP8 cannot hold.
    """
    model = MedVisionLlama(spec)
    model.llm.requires_grad_(spec.config.train_block)
    frozen.hold(model.llm, spec.config.frozen_precision)
    return model
