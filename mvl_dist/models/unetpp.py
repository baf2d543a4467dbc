"""UNet++ (Zhou et al., DLMIA 2018): MONAI's BasicUNetPlusPlus in 3D.

Features 32, 32, 64, 128, 256, 32 as MONAI has them. Instance norm where the 2D original has none or
batch norm, because a batch of a volume or two a rank has no usable batch statistics. Its nested
deep supervision is off, as in the paper's comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

PUBLISHED_FEATURES = 32
RATIOS = (1, 1, 2, 4, 8, 1)


class UNetPlusPlus(nn.Module):
    """MONAI's network with one output instead of a list of one."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        first = spec.config.features or PUBLISHED_FEATURES
        self.net = BasicUNetPlusPlus(
            spatial_dims=3,
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            features=[first * ratio for ratio in RATIOS],
        )
        # Heads of the deep supervision: computed and thrown away, and never trained.
        self.net.final_conv_0_1 = self.net.final_conv_0_2 = self.net.final_conv_0_3 = nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> logits (B, R, D, H, W)."""
        return self.net(image)[0]


def build(spec: ModelSpec) -> nn.Module:
    """Build UNet++."""
    return UNetPlusPlus(spec)
