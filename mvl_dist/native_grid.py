"""From the store's grid back to the scan's own: the inverse of the converter's resampling.

The converter brings a scan to one orientation by turning and mirroring whole axes, keeps its label
untouched on those axes, and resamples the whole volume, uncropped, to the task's grid: both grids
cover the same box, and the centre of voxel i of n lies at (i + 1/2) / n of it
(mvl_dist/resample.py). Going back takes the same rule with the shapes exchanged, so a point of the
scan comes back where it was, and orientation needs no undoing: `label_native` has the same axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def to_native(logits: Tensor, native_shape: Sequence[int]) -> Tensor:
    """Values at the voxel centres of the scan's own grid, linear between those of the store's.

    Linear, so a field that is linear in millimetres comes back as it was, except within half a
    voxel of the store's grid from the border, where the outermost value is repeated. Logits are
    interpolated, not masks, so that a mask is as smooth as the scan's grid allows.

    Args:
        logits: (R, D, H, W) at the store's grid.
        native_shape: D0, H0, W0 of `label_native`.

    Returns:
        (R, D0, H0, W0), of the same dtype and device.
    """
    if logits.ndim != 4 or len(native_shape) != 3:
        raise ValueError(
            f"takes logits (R, D, H, W) and a shape (D, H, W), got {tuple(logits.shape)} and "
            f"{tuple(native_shape)}"
        )
    size = tuple(int(n) for n in native_shape)
    return F.interpolate(logits[None], size=size, mode="trilinear", align_corners=False)[0]
