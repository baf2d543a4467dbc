"""What the token-based segmentation networks share: tokens and volumes, heads, patch expanding."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from mvl_dist.models import Shape3D

# A LayerNorm over one or two features would leave nothing of them.
FEWEST_LAST_FEATURES = 8


def last_features(first: int) -> int:
    """Features of a voxel after the last expansion: a quarter of the first stage's."""
    return max(first // 4, FEWEST_LAST_FEATURES)


def to_tokens(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W) -> (B, T, C)."""
    return volume.flatten(2).transpose(1, 2)


def to_volume(tokens: torch.Tensor, size: Shape3D) -> torch.Tensor:
    """(B, T, C) -> (B, C, D, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def heads_for(width: int, head_size: int) -> int:
    """Heads of about `head_size` that divide a width; at least one."""
    return max(heads for heads in range(1, max(width // head_size, 1) + 1) if width % heads == 0)


class PatchExpanding(nn.Module):
    """Each token becomes factor^3 tokens of `out` features (Cao et al., Swin-Unet, section 3.5).

    (B, C, D, H, W) -> (B, out, factor D, factor H, factor W).
    """

    def __init__(self, width: int, out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(width, factor**3 * out, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Expand, then normalise each new token."""
        expanded = self.linear(volume.movedim(1, -1))
        n = self.factor
        pattern = "b d h w (p q r c) -> b (d p) (h q) (w r) c"
        return self.norm(rearrange(expanded, pattern, p=n, q=n, r=n)).movedim(-1, 1)


class Fusion(nn.Module):
    """A skip connection: concatenation and a linear back to the width, voxel by voxel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv3d(2 * width, width, 1)

    def forward(self, decoded: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Two of (B, C, D, H, W) -> (B, C, D, H, W)."""
        return self.linear(torch.cat([decoded, skip], 1))
