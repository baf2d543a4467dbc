"""Intensity normalisation: z-score for MRI, nnU-Net's Hounsfield scheme for CT.

MRI units are arbitrary and differ between scanners, so each case and channel is brought to mean 0
and deviation 1 over its non-zero voxels (zero is the stripped background). CT units are physical,
so all cases share one clip range, mean and deviation; data_prep/intensity.py finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Scale:
    """How one channel's raw intensities become the model's: clipped if CT, then z-scored."""

    mean: float
    std: float
    clip: tuple[float, float] | None = None

    @property
    def divisor(self) -> float:
        """What the values less the mean are divided by: the deviation, or a floor of it."""
        return _floored(self.std, self.mean)

    def apply(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Normalised values of an array of any shape and type; C order, the input is left alone."""
        out = raw.astype(np.float32, order="C")
        if self.clip is not None:
            np.clip(out, *map(np.float32, self.clip), out=out)
        out -= np.float32(self.mean)
        out /= np.float32(self.divisor)
        return out


def nonzero_moments(channel: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and deviation over the non-zero voxels; 0 where there are none."""
    return moments(channel[channel != 0])


def moments(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and deviation, summed in float64; 0 of no values."""
    if not values.size:
        return 0.0, 0.0
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


def scale_of(normalisation: Mapping[str, Any], nonzero: tuple[float, float]) -> Scale:
    """The scale that a manifest's `normalisation` gives a channel.

    Args:
        nonzero: the channel's `nonzero_moments`, which MRI is scaled by.
    """
    if normalisation["scheme"] == CT_SCHEME:
        low, high = normalisation["clip_hu"]
        return Scale(normalisation["mean_hu"], normalisation["std_hu"], (low, high))
    return Scale(*nonzero)


def normalise(
    image: npt.NDArray[np.float32], normalisation: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """Normalise (C, D, H, W) as a manifest's `normalisation` says; the input is left alone."""
    ct = normalisation["scheme"] == CT_SCHEME
    out = np.empty_like(image)
    for channel, target in zip(image, out, strict=True):
        nonzero = (0.0, 0.0) if ct else nonzero_moments(channel)
        target[...] = scale_of(normalisation, nonzero).apply(channel)
    return out
