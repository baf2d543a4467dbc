"""UNETR (Hatamizadeh et al., WACV 2022): MONAI's network, a ViT encoder, a convolutional decoder.

16^3 patches, 12 blocks of width 768 with 12 heads, decoder features from 16, as published. Smaller
`features` shrink the ViT with the decoder: width 48 x features, heads of 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai.networks.nets import UNETR
from torch import nn

if TYPE_CHECKING:
    from mvl_dist.models import ModelSpec

PUBLISHED_FEATURES = 16


def build(spec: ModelSpec) -> nn.Module:
    """Build UNETR."""
    features = spec.config.features or PUBLISHED_FEATURES
    width = 48 * features
    model = UNETR(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        img_size=spec.grid,
        feature_size=features,
        hidden_size=width,
        mlp_dim=4 * width,
        num_heads=max(width // 64, 1),
    )
    for block in model.vit.blocks:  # parameters that are never called, so never trained
        block.norm_cross_attn = block.cross_attn = nn.Identity()
    return model
