"""SwinUNETR (Hatamizadeh et al., BrainLes 2021): MONAI's network; what people use today.

Features 48, depths 2, 2, 2, 2, heads 3, 6, 12, 24 and windows of 7^3, as published for brain
tumours. MONAI wants features in multiples of 12; others are rounded up to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai.networks.nets import SwinUNETR

if TYPE_CHECKING:
    from torch import nn

    from mvl_dist.models import ModelSpec

PUBLISHED_FEATURES = 48


def build(spec: ModelSpec) -> nn.Module:
    """Build SwinUNETR."""
    features = spec.config.features or PUBLISHED_FEATURES
    return SwinUNETR(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        feature_size=-(-features // 12) * 12,
    )
