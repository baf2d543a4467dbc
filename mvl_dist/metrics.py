"""Segmentation metrics of one case and one region, in millimetres on the case's own grid.

Overlap counts voxels; `surface_metrics` says what NSD and HD measure. `CONVENTIONS` says what
undefined cases become, once for all of this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mvl_dist.surface_metrics import surface_metrics

Mask = NDArray[np.bool_]

METRICS = (
    *("dice", "jaccard", "nsd", "hd95_mm", "hd100_mm", "sensitivity", "specificity"),
    *("predicted_ml", "reference_ml", "false_positive_ml"),
)
# Lengths in voxels of the store's grid, and NSD at one of them: what the published code scores by.
GRID_METRICS = {
    "dice_grid": "dice",
    "jaccard_grid": "jaccard",
    "nsd_grid": "nsd",
    "hd95_grid_voxels": "hd95_mm",
    "sensitivity_grid": "sensitivity",
    "specificity_grid": "specificity",
}
# Printed under every table.
CONVENTIONS = (
    "both masks empty: Dice, Jaccard and NSD are 1, HD95 and HD100 are 0 mm",
    "one mask empty: Dice, Jaccard and NSD are 0, HD95 and HD100 are the image's diagonal in mm",
    "no reference voxel: sensitivity is undefined; no background voxel: specificity is",
    "a mean is over the n cases in which its metric is defined",
)
LOWER_IS_BETTER = ("hd95_mm", "hd100_mm", "false_positive_ml", "hd95_grid_voxels")


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one."""
    return metric not in LOWER_IS_BETTER


def metric_name(region: str) -> str:
    """A region's name in the letters that MLflow allows in a metric's name."""
    return "".join(char if char.isalnum() or char in "_-. /" else "_" for char in region)


def case_metrics(
    prediction: Mask,
    reference: Mask,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    threads: int = 1,
) -> dict[str, float]:
    """All metrics of one case and region; `CONVENTIONS` says what undefined ones become.

    Args:
        prediction: (D, H, W) boolean mask.
        reference: (D, H, W) boolean mask.
        spacing_mm: voxel size in the order of the array's axes (D, H, W).
        tolerance_mm: largest distance at which NSD counts two surfaces as the same.
        threads: for the search of nearest surfels.

    Returns:
        dice, jaccard, sensitivity, specificity, nsd (fractions), hd95_mm, hd100_mm, predicted_ml,
        reference_ml, false_positive_ml (volumes).

    Raises:
        ValueError: masks that are not boolean, not 3D or of different shapes; a spacing that is not
            three positive numbers; a negative tolerance.
    """
    spacing = _checked_spacing(spacing_mm)
    _check_masks(prediction, reference)
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm must be a finite number >= 0, got {tolerance_mm}")

    n_voxels, shape = reference.size, reference.shape
    box = _bounding_box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    n_reference = int(np.count_nonzero(reference))
    n_prediction = int(np.count_nonzero(prediction))
    n_both = int(np.count_nonzero(prediction & reference))
    n_either = n_prediction + n_reference - n_both
    n_background = n_voxels - n_reference
    voxel_ml = math.prod(spacing) / 1000
    metrics = {
        "dice": 2 * n_both / (n_prediction + n_reference) if n_either else 1.0,
        "jaccard": n_both / n_either if n_either else 1.0,
        "sensitivity": n_both / n_reference if n_reference else math.nan,
        "specificity": (n_voxels - n_either) / n_background if n_background else math.nan,
        "predicted_ml": n_prediction * voxel_ml,
        "reference_ml": n_reference * voxel_ml,
        "false_positive_ml": (n_prediction - n_both) * voxel_ml,
    }
    if n_prediction and n_reference:
        surface = surface_metrics(prediction, reference, spacing, tolerance_mm, threads)
    elif n_either:
        diagonal_mm = math.hypot(*(n * mm for n, mm in zip(shape, spacing, strict=True)))
        surface = {"nsd": 0.0, "hd95_mm": diagonal_mm, "hd100_mm": diagonal_mm}
    else:
        surface = {"nsd": 1.0, "hd95_mm": 0.0, "hd100_mm": 0.0}
    return metrics | surface


def _bounding_box(first: Mask, second: Mask) -> tuple[slice, slice, slice]:
    """The smallest box around all that is set in either mask; an empty one if nothing is."""
    occupied = np.any(first, axis=2) | np.any(second, axis=2)
    if not occupied.any():
        return (slice(0), slice(0), slice(0))
    d, h = (_extent(np.any(occupied, axis=axis)) for axis in (1, 0))
    w = _extent(np.any(first[d, h], axis=(0, 1)) | np.any(second[d, h], axis=(0, 1)))
    return d, h, w


def _extent(occupied: NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(occupied)
    return slice(int(where[0]), int(where[-1]) + 1)


def _checked_spacing(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    spacing = tuple(float(mm) for mm in spacing_mm)
    if len(spacing) != 3 or not all(0 < mm < math.inf for mm in spacing):
        raise ValueError(f"spacing_mm must be three positive numbers, got {spacing}")
    return spacing


def _check_masks(prediction: Mask, reference: Mask) -> None:
    if prediction.shape != reference.shape or reference.ndim != 3:
        raise ValueError(
            f"masks must be 3D and of equal shape, got {prediction.shape} and {reference.shape}"
        )
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {reference.dtype}")
