"""nnU-Net's network by nnU-Net's rules: MONAI's DynUNet, configured from the store's fingerprint.

The rules are those of Isensee et al., Nature Methods 2021 (supplementary note 2): an axis is halved
while it keeps at least 4 voxels and its spacing is below twice the finest; an axis takes part in a
3-wide kernel from the stage at which its spacing is below twice the finest; features double from 32
to at most 320; instance norm, leaky ReLU, deep supervision at all but the two coarsest outputs.

What differs from the nnunetv2 package (`mvl nnunet` runs that one): unless the run says
`--resolution spaced`, the network sees the whole scan at the store's grid, not a patch at the
task's spacing. The grid is fixed, so an axis of odd length is not halved any more where nnU-Net
would pad its patch. Coarse outputs are brought up to the full grid for the loss, which is how
DynUNet gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from monai.networks.nets import DynUNet
from torch import nn

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

PUBLISHED_FEATURES, MOST_FEATURES_RATIO = 32, 10
SMALLEST_AXIS = 4
Axes = tuple[int, int, int]


@dataclass(frozen=True)
class Topology:
    """Kernel and stride of every stage, the full resolution first (its stride is 1)."""

    kernels: tuple[Axes, ...]
    strides: tuple[Axes, ...]


def topology(grid: Axes, spacing_mm: tuple[float, float, float]) -> Topology:
    """nnU-Net's rules for a grid of voxels of a size, both along D, H, W."""
    size, spacing = list(grid), list(spacing_mm)
    kernel = [1, 1, 1]
    kernels: list[Axes] = []
    strides: list[Axes] = [(1, 1, 1)]
    while True:
        kernel = [
            3 if k == 3 or s < 2 * min(spacing) else 1 for k, s in zip(kernel, spacing, strict=True)
        ]
        axes = [a for a in range(3) if size[a] >= 2 * SMALLEST_AXIS and size[a] % 2 == 0]
        finest = min((spacing[a] for a in axes), default=0.0)
        axes = [a for a in axes if spacing[a] < 2 * finest]
        if not axes or (len(axes) == 1 and size[axes[0]] < 3 * SMALLEST_AXIS):
            break
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if a in axes else 1 for a in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        size = [n // s for n, s in zip(size, stride, strict=True)]
        spacing = [mm * s for mm, s in zip(spacing, stride, strict=True)]
    kernels.append((3, 3, 3))
    return Topology(tuple(kernels), tuple(strides))


class DynamicUNet(nn.Module):
    """MONAI's DynUNet; in training it returns a tuple of logits, the finest first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        plan = topology(spec.grid, spec.spacing_mm)
        first = spec.config.features or PUBLISHED_FEATURES
        stages = len(plan.strides)
        self.net = DynUNet(
            spatial_dims=3,
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=[min(first * 2**n, first * MOST_FEATURES_RATIO) for n in range(stages)],
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            deep_supervision=stages > 3,
            deep_supr_num=max(stages - 3, 1),
            trans_bias=True,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(B, C, D, H, W) -> logits (B, R, D, H, W), in training one for each supervised stage."""
        out = self.net(image)
        return out.unbind(1) if out.ndim == 6 else out


def build(spec: ModelSpec) -> nn.Module:
    """Build nnU-Net's network for the grid and its voxel size."""
    return DynamicUNet(spec)
