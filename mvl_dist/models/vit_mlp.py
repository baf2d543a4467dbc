"""ViT-MLP: the ViT with one large trained MLP where MedVisionLlama has its block (paper, Table 4).

The paper says 220.45 M parameters and 'a large multilayer perceptron (MLP) incorporated into the
original ViT-Baseline'; it gives no sizes, and those of the published code make 5,722.6 M. Here the
MLP stands at the language model's place, between the same two widths: tokens of 64 are mapped to
4,096 (Llama-3.1-8B's width), through 26,624 hidden units back to 4,096, and back to 64, with the
same residual. That makes 219.791 M (0.30 % below the paper's figure; 26,704 hidden units would meet
it, 26,624 = 13 x 2,048 suits the hardware), and nearly the language model's FLOPs: what is
compared is what the parameters are, not how many.

As factors on the baseline: 64 x width, 416 x width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mvl_dist.models.medvisionllama import Mappers, RefinedViT

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

HIDDEN_FACTOR, INNER_FACTOR = 64, 416


class ViTMLP(RefinedViT):
    """ViT with a trained MLP between `mappers`; parts: `vit`, `mappers`, `mlp`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        width = spec.config.width
        hidden, inner = HIDDEN_FACTOR * width, INNER_FACTOR * width
        self.mappers = Mappers(width, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))

    def refine(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, T, width)."""
        hidden = self.mappers.into(tokens)
        return self.mappers.back(self.mlp(hidden) + hidden)


def build(spec: ModelSpec) -> nn.Module:
    """Build ViT-MLP."""
    return ViTMLP(spec)
