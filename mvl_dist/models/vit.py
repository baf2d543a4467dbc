"""ViT-Baseline: the published code's 3D Vision Transformer, without its visualisation head.

Patches -> linear embedding -> learned positions -> pre-LN blocks -> linear head -> voxels
(paper section 3.1, equation 1). At 128^3 voxels, 8^3 patches, one channel and one region it has
32,832 + 262,144 + 16 x 49,984 + 33,280 = 1,128,000 parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from mvl_dist.kernels import dispatch, layer_norm, layer_norm_linear, short_head_attention

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

Shape3D = tuple[int, int, int]


class PatchEmbedding(nn.Module):
    """Cut an image into patches and embed each: (B, C, D, H, W) -> (B, T, width)."""

    def __init__(self, channels: int, patch: Shape3D, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(channels * math.prod(patch), width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Tokens in the order of D, H, W; a patch's values in the order of C, then its voxels."""
        batch, channels, *size = image.shape
        (d, h, w), (p, q, r) = size, self.patch
        image = image.reshape(batch, channels, d // p, p, h // q, q, w // r, r)
        return self.linear(image.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3))


class SegmentationHead(nn.Module):
    """Turn each token back into its patch of logits: (B, T, width) -> (B, R, D, H, W)."""

    def __init__(self, width: int, regions: int, patch: Shape3D, grid: Shape3D) -> None:
        super().__init__()
        self.patch, self.grid, self.regions = patch, grid, regions
        self.linear = nn.Linear(width, regions * math.prod(patch))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Inverse of the patch embedding's cutting."""
        p, q, r = self.patch
        d, h, w = (size // patch for size, patch in zip(self.grid, self.patch, strict=True))
        logits = self.linear(tokens).reshape(-1, d, h, w, self.regions, p, q, r)
        return logits.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, self.regions, *self.grid)


class Positions(nn.Module):
    """Learned position embedding, N(0, 1) at the start, added to the tokens (B, T, width)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, tokens, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add a position to each token."""
        return tokens + self.embedding


class AddNorm(nn.Module):
    """A branch's output added to the residual stream, and the sum's LayerNorm."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(
        self, branch: torch.Tensor, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, width), twice or once -> (the sum's LayerNorm, the sum)."""
        return dispatch.run(layer_norm, branch, self.weight, self.bias, self.eps, residual)


class LinearOfNorm(nn.Linear):
    """A linear of a LayerNorm's output: one kernel where a row fits one."""

    def forward(self, tokens: torch.Tensor, norm: AddNorm) -> torch.Tensor:  # type: ignore[override]
        """(B, T, K), and the norm that comes first -> (B, T, N)."""
        # ZeRO-3 gathers each module's weights for its own call only.
        alone = hasattr(self.weight, "ds_id") or layer_norm_linear.too_wide(self.weight)
        if alone or not dispatch.composes("norm and linear", tokens, ""):
            return super().forward(norm(tokens)[0])
        return dispatch.run(
            layer_norm_linear, tokens, norm.weight, norm.bias, norm.eps, self.weight, self.bias
        )


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, no mask; one linear for q, k and v."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = LinearOfNorm(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, norm: AddNorm) -> torch.Tensor:
        """Attention among the tokens as `norm` leaves them: (B, T, width) -> (B, T, width)."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens, norm).reshape(batch, length, 3, self.heads, width // self.heads)
        dropout = self.dropout if self.training else 0.0
        mixed = self.projection(dispatch.run(short_head_attention, qkv, dropout=dropout))
        return F.dropout(mixed, self.dropout, self.training)


class Block(nn.Module):
    """Pre-LN transformer block: attention, then an MLP with GELU, each with its residual."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = AddNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = AddNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, T, width)."""
        mixed = self.attention(tokens, self.attention_norm)
        normed, tokens = self.mlp_norm(mixed, tokens)
        return tokens + self.mlp(normed)


class ViTParts(nn.Module):
    """What every ViT of this family is put together from."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        config = spec.config
        tokens = math.prod(g // p for g, p in zip(spec.grid, config.patch, strict=True))
        self.embedding = PatchEmbedding(spec.in_channels, config.patch, config.width)
        self.positions = Positions(tokens, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.dropout)
            for _ in range(config.depth)
        )
        self.head = SegmentationHead(config.width, spec.out_channels, config.patch, spec.grid)


class ViTBaseline(nn.Module):
    """The transformer without a language-model block."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.vit = ViTParts(spec)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> logits (B, R, D, H, W)."""
        tokens = self.vit.positions(self.vit.embedding(image))
        for block in self.vit.blocks:
            tokens = block(tokens)
        return self.vit.head(tokens)


def build(spec: ModelSpec) -> nn.Module:
    """Build ViT-Baseline."""
    return ViTBaseline(spec)
