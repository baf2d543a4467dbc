"""Intensity normalisation: z-score for MRI, nnU-Net's Hounsfield scheme for CT.

MRI units are arbitrary and differ between scanners, so each case and channel is brought to mean 0
and deviation 1 over its non-zero voxels (zero is the stripped background). CT units are physical,
so all cases share one clip range, mean and deviation; data_prep/intensity.py finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MRI_SCHEME: dict[str, Any] = {
    "scheme": "mri-zscore",
    "over": "non-zero voxels of each case and channel",
}
CT_SCHEME = "ct-percentiles"


def _floored(std: float, mean: float) -> float:
    """A deviation that may divide: a constant image then maps to values that float16 holds."""
    return max(std, 1e-4 * abs(mean), 1e-8)


def normalise(
    image: npt.NDArray[np.float32], normalisation: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """Normalise (C, D, H, W) as a manifest's `normalisation` says; the input is left alone."""
    if normalisation["scheme"] == CT_SCHEME:
        low, high = normalisation["clip_hu"]
        mean, std = normalisation["mean_hu"], normalisation["std_hu"]
        out = np.clip(image, np.float32(low), np.float32(high))
        out -= np.float32(mean)
        out /= np.float32(_floored(std, mean))
        return out
    out = np.empty_like(image)
    for channel, target in zip(image, out, strict=True):
        values = channel[channel != 0]
        mean = float(values.mean(dtype=np.float64)) if values.size else 0.0
        std = float(values.std(dtype=np.float64)) if values.size else 0.0
        np.subtract(channel, np.float32(mean), out=target)
        target /= np.float32(_floored(std, mean))
    return out
