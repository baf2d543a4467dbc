"""From a model's grid back to the scan's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Shape3D = tuple[int, int, int]


def to_native(logits: torch.Tensor, native_shape: Shape3D) -> torch.Tensor:
    """Resample logits (R, D, H, W) to the scan's (R, D0, H0, W0), before any threshold.

    Trilinear, so that a mask's border is as smooth as the scan's grid allows.
    """
    return F.interpolate(
        logits[None], size=tuple(native_shape), mode="trilinear", align_corners=False
    )[0]
