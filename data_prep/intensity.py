"""Intensity statistics: of each case for the manifest, and those that normalise a CT task.

CT's clip range, mean and deviation are those of the foreground voxels of the cases that are not
held out for the test; mvl_dist/intensity.py applies them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from mvl_dist.errors import UserError
from mvl_dist.intensity import CT_SCHEME, moments, nonzero_moments
from mvl_dist.label_resampling import bounding_box

CLIP_PERCENTILES = (0.5, 99.5)

# Real CT leaves -1024..3071: padding at -2000 and below, metal above. Beyond int16 is no HU.
_HU_LIMIT = 32767

Histogram = dict[int, int]


def channel_statistics(
    image: npt.NDArray[Any], label: npt.NDArray[np.uint8], scheme: str
) -> dict[str, Any]:
    """Raw intensities of (C, D, H, W), one list entry a channel.

    Mean and deviation are over non-zero voxels for `mri`, over labelled ones for `ct`; 0 where
    there are none.
    """
    rows: dict[str, Any] = {"minimum": [], "maximum": [], "mean": [], "std": []}
    for channel in image:
        mri = scheme == "mri"
        extremes = _as_filed(channel, channel)
        mean, std = nonzero_moments(channel) if mri else moments(_labelled(channel, label))
        for key, value in zip(rows, (extremes.min(), extremes.max(), mean, std), strict=True):
            rows[key].append(float(value))
    return {"over": "non-zero voxels" if scheme == "mri" else "labelled voxels", **rows}


def _labelled(channel: npt.NDArray[Any], label: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    box = bounding_box(label)
    return channel[:0].ravel() if box is None else channel[box][label[box] > 0]


def _as_filed(values: npt.NDArray[Any], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view that runs forwards where `like` runs backwards in memory, which takes NumPy longer.

    Only for what no order of the voxels changes: a sum's last bits it does.
    """
    return values[tuple(slice(None, None, -1 if step < 0 else 1) for step in like.strides)]


def hu_histogram(image: npt.NDArray[Any], label: npt.NDArray[np.uint8]) -> Histogram:
    """Count of every whole HU value among the labelled voxels of (1, D, H, W).

    A CT whose HU are not whole numbers is rounded for this count only.
    """
    values = _labelled(_as_filed(image[0], label), _as_filed(label, label))
    if not values.size:
        return {}
    whole = np.clip(values, -_HU_LIMIT, _HU_LIMIT)
    if whole.dtype.kind == "f":
        whole = np.rint(whole)
    whole = whole.astype(np.intp)
    lowest = int(whole.min())
    whole -= lowest
    counts = np.bincount(whole)
    return {int(value) + lowest: int(counts[value]) for value in np.flatnonzero(counts)}


def _percentile(
    values: npt.NDArray[np.int64], cumulative: npt.NDArray[np.int64], percent: float
) -> float:
    """The same as numpy.percentile (linear) of the voxels themselves."""
    position = (cumulative[-1] - 1) * percent / 100
    below, above = (
        values[np.searchsorted(cumulative, rank, side="right")]
        for rank in (np.floor(position), np.ceil(position))
    )
    return float(below + (above - below) * (position - np.floor(position)))


def ct_normalisation(task: str, histograms: Iterable[Histogram]) -> dict[str, Any]:
    """Clip range, mean and deviation in HU of all histograms together: exact, without the voxels.

    Raises:
        UserError: not one labelled voxel.
    """
    total: Histogram = {}
    cases = 0
    for histogram in histograms:
        cases += 1
        for value, count in histogram.items():
            total[value] = total.get(value, 0) + count
    if not total:
        raise UserError(f"{task}: no training case has a labelled voxel: check the label files")
    values = np.array(sorted(total), dtype=np.int64)
    counts = np.array([total[int(value)] for value in values], dtype=np.int64)
    voxels = int(counts.sum())
    mean = float((values * counts).sum() / voxels)
    std = float(np.sqrt(((values - mean) ** 2 * counts).sum() / voxels))
    low, high = (_percentile(values, counts.cumsum(), p) for p in CLIP_PERCENTILES)
    return {
        "scheme": CT_SCHEME,
        "over": "labelled voxels of the cases that are not held out for the test",
        "clip_hu": [low, high],
        "mean_hu": mean,
        "std_hu": std,
        "voxels": voxels,
        "cases": cases,
    }
