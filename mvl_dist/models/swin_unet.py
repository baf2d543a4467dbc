"""Swin-Unet in 3D (Cao et al., ECCV Workshops 2022), on MONAI's Swin layers.

A pure Swin encoder-decoder: patches of 4^3, stages of width C, 2C, 4C, 8C joined by patch merging,
a decoder of Swin stages joined by patch expanding, skip connections fused by a linear, and an
expansion by 4 to the voxels. C = 96, two blocks a stage, heads of 32, windows of 7.

What differs from the 2D original: windows, merging and expanding work on three axes (merging joins
8 tokens, not 4); the last expansion ends at C/4 features a voxel, because C of them at 128^3 would
take 0.8 GB a sample; there are no ImageNet weights to start from in 3D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging
from torch import nn

from mvl_dist.models.parts import Fusion, PatchExpanding, heads_for, last_features

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

PUBLISHED_FEATURES = 96
STAGES, BLOCKS, HEAD_SIZE, WINDOW, PATCH = 4, 2, 32, 7, 4


def swin_stage(width: int) -> BasicLayer:
    """Swin blocks with plain and shifted windows in turn: (B, C, D, H, W) to the same."""
    return BasicLayer(
        dim=width,
        depth=BLOCKS,
        num_heads=heads_for(width, HEAD_SIZE),
        window_size=(WINDOW,) * 3,
        drop_path=[0.0] * BLOCKS,
        qkv_bias=True,
    )


class Merging(nn.Module):
    """MONAI's patch merging on channels-first volumes: half the size, twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.merge = PatchMerging(dim=width, spatial_dims=3)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> (B, 2C, D/2, H/2, W/2)."""
        return self.merge(volume.movedim(1, -1)).movedim(-1, 1)


class SwinUNet(nn.Module):
    """Parts by stage, the finest first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        first = spec.config.features or PUBLISHED_FEATURES
        widths = [first * 2**stage for stage in range(STAGES)]
        self.embedding = nn.Conv3d(spec.in_channels, first, PATCH, PATCH)
        self.embedding_norm = nn.LayerNorm(first)
        self.encoder = nn.ModuleList(map(swin_stage, widths))
        self.merging = nn.ModuleList(map(Merging, widths[:-1]))
        self.bottleneck_norm = nn.LayerNorm(widths[-1])
        self.expanding = nn.ModuleList(PatchExpanding(2 * w, w, 2) for w in widths[:-1])
        self.fusion = nn.ModuleList(map(Fusion, widths[:-1]))
        self.decoder = nn.ModuleList(map(swin_stage, widths[:-1]))
        last = last_features(first)
        self.to_voxels = PatchExpanding(first, last, PATCH)
        self.head = nn.Conv3d(last, spec.out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> logits (B, R, D, H, W)."""
        x = self.embedding_norm(self.embedding(image).movedim(1, -1)).movedim(-1, 1)
        skips = []
        for stage, merging in zip(self.encoder, self.merging, strict=False):
            x = stage(x)
            skips.append(x)
            x = merging(x)
        x = self.bottleneck_norm(self.encoder[-1](x).movedim(1, -1)).movedim(-1, 1)
        for level in reversed(range(STAGES - 1)):
            x = self.fusion[level](self.expanding[level](x), skips[level])
            x = self.decoder[level](x)
        return self.head(self.to_voxels(x))


def build(spec: ModelSpec) -> nn.Module:
    """Build Swin-Unet."""
    return SwinUNet(spec)
