"""MISSFormer in 3D (Huang et al., IEEE TMI 2023).

A hierarchical encoder with overlapped patch embedding (kernel 7, stride 4) and merging (kernel 3,
stride 2), widths 64, 128, 320, 512, two Enhanced Transformer Blocks a stage; the Enhanced
Transformer Context Bridge, four layers over the tokens of all stages at once; a decoder of the same
blocks with patch expanding and bridged skips. Attention is efficient: keys and values come from
tokens reduced by 8, 4, 2, 1 an axis. The Enhanced Mix-FFN adds a depthwise convolution to its input
and normalises the sum.

What differs from the 2D original: all convolutions, reductions and expansions have three axes, so a
stage's reduction leaves 4^3 keys of a 128^3 image where it left 7^2 of a 224^2 one; the last
expansion ends at a quarter of the first width, because 64 features a voxel at 128^3 would take
0.5 GB a sample; there are no ImageNet weights in 3D.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mvl_dist.models.parts import (
    Fusion,
    PatchExpanding,
    heads_for,
    last_features,
    to_tokens,
    to_volume,
)

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec, Shape3D

PUBLISHED_FEATURES = 64
RATIOS = (1, 2, 5, 8)  # of the stages' widths
REDUCTIONS = (8, 4, 2, 1)
BLOCKS, BRIDGE_LAYERS, HEAD_SIZE = 2, 4, 64


class Reduction(nn.Module):
    """Tokens of one stage, fewer by factor^3: (B, C, D, H, W) -> (B, C, D/f, H/f, W/f)."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(width, width, factor, factor) if factor > 1 else nn.Identity()

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """A strided convolution without overlap; nothing for factor 1."""
        return self.convolution(volume)


class Attention(nn.Module):
    """Queries (B, T, C) attend to other tokens (B, S, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        q = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(seen).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class EnhancedMixFFN(nn.Module):
    """Linear, depthwise convolution with a skip, LayerNorm, GELU, linear (their equation 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.widen = nn.Linear(width, hidden)
        self.convolution = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor, size: Shape3D) -> torch.Tensor:
        """(B, T, C) of a volume of `size` -> (B, T, C)."""
        hidden = self.widen(tokens)
        mixed = to_tokens(self.convolution(to_volume(hidden, size)))
        return self.narrow(F.gelu(self.norm(mixed + hidden)))


class EnhancedBlock(nn.Module):
    """Enhanced Transformer Block: efficient attention, Enhanced Mix-FFN, a residual each."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.reduction = Reduction(width, reduction)
        self.seen_norm = nn.LayerNorm(width) if reduction > 1 else nn.Identity()
        self.attention = Attention(width, heads_for(width, HEAD_SIZE))
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = EnhancedMixFFN(width)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) to the same."""
        d, h, w = volume.shape[2:]
        tokens = to_tokens(volume)
        normed = self.attention_norm(tokens)
        reduced = to_tokens(self.reduction(to_volume(normed, (d, h, w))))
        tokens = tokens + self.attention(normed, self.seen_norm(reduced))
        tokens = tokens + self.ffn(self.ffn_norm(tokens), (d, h, w))
        return to_volume(tokens, (d, h, w))


class BridgeLayer(nn.Module):
    """One layer of the context bridge: all stages attend to all, then each has its Mix-FFN.

    A stage of width r C stands in it as r tokens of the first stage's width C a voxel.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.norm = nn.LayerNorm(first)
        self.reductions = nn.ModuleList(
            Reduction(first * ratio, factor)
            for ratio, factor in zip(RATIOS, REDUCTIONS, strict=True)
        )
        self.seen_norm = nn.LayerNorm(first)
        self.attention = Attention(first, heads_for(first, HEAD_SIZE))
        self.ffn_norm = nn.LayerNorm(first)
        self.ffns = nn.ModuleList(EnhancedMixFFN(first * ratio) for ratio in RATIOS)

    def forward(self, stages: list[torch.Tensor]) -> list[torch.Tensor]:
        """Volumes of the four stages to the same."""
        sizes = [(s.shape[2], s.shape[3], s.shape[4]) for s in stages]
        tokens = torch.cat([self._narrow(to_tokens(stage)) for stage in stages], 1)
        normed = self._wide(self.norm(tokens), sizes)
        reduced = [
            self._narrow(to_tokens(reduction(to_volume(part, size))))
            for reduction, part, size in zip(self.reductions, normed, sizes, strict=True)
        ]
        seen = self.seen_norm(torch.cat(reduced, 1))
        tokens = tokens + self.attention(self.norm(tokens), seen)
        parts = self._wide(self.ffn_norm(tokens), sizes)
        mixed = [
            self._narrow(ffn(part, size))
            for ffn, part, size in zip(self.ffns, parts, sizes, strict=True)
        ]
        tokens = tokens + torch.cat(mixed, 1)
        return [
            to_volume(part, size)
            for part, size in zip(self._wide(tokens, sizes), sizes, strict=True)
        ]

    def _narrow(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.reshape(len(tokens), -1, self.first)

    def _wide(self, tokens: torch.Tensor, sizes: list[Shape3D]) -> list[torch.Tensor]:
        lengths = [d * h * w * ratio for (d, h, w), ratio in zip(sizes, RATIOS, strict=True)]
        parts = tokens.split(lengths, 1)
        return [
            part.reshape(len(part), -1, self.first * ratio)
            for part, ratio in zip(parts, RATIOS, strict=True)
        ]


class MISSFormer(nn.Module):
    """Parts by stage, the finest first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        first = spec.config.features or PUBLISHED_FEATURES
        widths = [first * ratio for ratio in RATIOS]
        before = [spec.in_channels, *widths]
        self.merging = nn.ModuleList(
            nn.Conv3d(narrow, wide, 3, 2, 1) if stage else nn.Conv3d(narrow, wide, 7, 4, 3)
            for stage, (narrow, wide) in enumerate(zip(before, widths, strict=False))
        )
        self.merging_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.encoder = nn.ModuleList(map(_stage, widths, REDUCTIONS))
        self.bridge = nn.ModuleList(BridgeLayer(first) for _ in range(BRIDGE_LAYERS))
        self.expanding = nn.ModuleList(
            PatchExpanding(wide, narrow, 2) for narrow, wide in pairwise(widths)
        )
        self.fusion = nn.ModuleList(map(Fusion, widths[:-1]))
        self.decoder = nn.ModuleList(map(_stage, widths[:-1], REDUCTIONS))
        last = last_features(first)
        self.to_voxels = PatchExpanding(first, last, 4)
        self.head = nn.Conv3d(last, spec.out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> logits (B, R, D, H, W)."""
        x, stages = image, []
        for merging, norm, blocks in zip(
            self.merging, self.merging_norms, self.encoder, strict=True
        ):
            x = norm(merging(x).movedim(1, -1)).movedim(-1, 1)
            x = blocks(x)
            stages.append(x)
        for layer in self.bridge:
            stages = layer(stages)
        x = stages[-1]
        for level in reversed(range(len(stages) - 1)):
            x = self.fusion[level](self.expanding[level](x), stages[level])
            x = self.decoder[level](x)
        return self.head(self.to_voxels(x))


def _stage(width: int, reduction: int) -> nn.Module:
    return nn.Sequential(*(EnhancedBlock(width, reduction) for _ in range(BLOCKS)))


def build(spec: ModelSpec) -> nn.Module:
    """Build MISSFormer."""
    return MISSFormer(spec)
