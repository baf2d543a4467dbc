"""TransUNet in 3D (Chen et al., 2021): the CNN-Transformer hybrid with the cascaded upsampler.

A ResNet-50 of three stages (3, 4, 9 bottlenecks, MONAI's) down to 1/16, each voxel there a token of
a ViT-Base (12 blocks of width 768, 12 heads, learned positions), then the cascaded upsampler (CUP):
a convolution to 512 features and four times 'twice the size, join the skip, two convolutions' to
256, 128, 64 and 16 features, with skips at 1/8, 1/4 and 1/2.

What differs from the 2D original: convolutions, pooling and upsampling (trilinear) have three axes;
group norm stands in the upsampler too, where the original has batch norm, because a batch is a
volume or two a rank; MONAI's bottlenecks normalise after their convolutions, the original's before;
there are no ImageNet weights in 3D. All widths follow `features`, 64 as published.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks.nets.resnet import ResNetBottleneck
from torch import nn

from mvl_dist.models.parts import heads_for, to_tokens, to_volume
from mvl_dist.models.vit import Block

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

PUBLISHED_FEATURES = 64
BOTTLENECKS = (3, 4, 9)
VIT_BLOCKS, VIT_WIDTH_RATIO, HEAD_SIZE, VIT_DROPOUT = 12, 12, 64, 0.1
CNN_STRIDE = 16


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups, as in the original's ResNet."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def convolution(narrow: int, wide: int) -> nn.Sequential:
    """3^3 convolution, group norm, ReLU."""
    return nn.Sequential(
        nn.Conv3d(narrow, wide, 3, padding=1, bias=False), group_norm(wide), nn.ReLU(inplace=True)
    )


def resnet_stage(wide_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Bottlenecks of MONAI to 4 x width features, the first with the stride."""
    wide = 4 * width
    norm = ("group", {"num_groups": math.gcd(32, width)})
    shortcut = nn.Sequential(nn.Conv3d(wide_in, wide, 1, stride, bias=False), group_norm(wide))
    layers = [ResNetBottleneck(wide_in, width, 3, stride, shortcut, norm=norm)]
    layers += [ResNetBottleneck(wide, width, 3, norm=norm) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


class UpBlock(nn.Module):
    """A step of the cascaded upsampler: twice the size, the skip joined, two convolutions."""

    def __init__(self, narrow: int, skip: int, wide: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(convolution(narrow + skip, wide), convolution(wide, wide))

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """(B, C, D, H, W) -> (B, C', 2D, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        return self.convolutions(x if skip is None else torch.cat([x, skip], 1))


class TransUNet(nn.Module):
    """CNN, ViT and upsampler; widths in multiples of `features` f."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        f = spec.config.features or PUBLISHED_FEATURES
        self.root = nn.Sequential(
            nn.Conv3d(spec.in_channels, f, 7, 2, 3, bias=False), group_norm(f), nn.ReLU()
        )
        self.pool = nn.MaxPool3d(3, 2, 1)
        self.stages = nn.ModuleList(
            [
                resnet_stage(f, f, BOTTLENECKS[0], 1),
                resnet_stage(4 * f, 2 * f, BOTTLENECKS[1], 2),
                resnet_stage(8 * f, 4 * f, BOTTLENECKS[2], 2),
            ]
        )
        width = VIT_WIDTH_RATIO * f
        tokens = math.prod(size // CNN_STRIDE for size in spec.grid)
        self.embedding = nn.Conv3d(16 * f, width, 1)
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))
        heads = heads_for(width, HEAD_SIZE)
        self.vit = nn.Sequential(*(Block(width, heads, 4, VIT_DROPOUT) for _ in range(VIT_BLOCKS)))
        self.norm = nn.LayerNorm(width)
        self.widen = convolution(width, 8 * f)
        last = max(f // 4, 1)
        self.up = nn.ModuleList(
            [
                UpBlock(8 * f, 8 * f, 4 * f),
                UpBlock(4 * f, 4 * f, 2 * f),
                UpBlock(2 * f, f, f),
                UpBlock(f, 0, last),
            ]
        )
        self.head = nn.Conv3d(last, spec.out_channels, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> logits (B, R, D, H, W)."""
        half = self.root(image)
        quarter = self.stages[0](self.pool(half))
        eighth = self.stages[1](quarter)
        x = self.embedding(self.stages[2](eighth))
        d, h, w = x.shape[2:]
        tokens = self.norm(self.vit(to_tokens(x) + self.positions))
        x = self.widen(to_volume(tokens, (d, h, w)))
        for block, skip in zip(self.up, (eighth, quarter, half, None), strict=True):
            x = block(x, skip)
        return self.head(x)


def build(spec: ModelSpec) -> nn.Module:
    """Build TransUNet."""
    return TransUNet(spec)
