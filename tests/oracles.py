"""Independent implementations that the tests compare with, and masks to compare them on."""

from __future__ import annotations

import types
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
SHAPE = (24, 28, 20)


def surface_distance_package() -> types.ModuleType:
    """DeepMind's surface-distance 0.1, which needs names that numpy 2 and scipy 2 lack."""
    # Always set: scipy still has the two namespaces, but warns at every use.
    for module, name, value in (
        (np, "Inf", np.inf),
        (np, "NaN", np.nan),
        (ndimage, "filters", ndimage),
        (ndimage, "morphology", ndimage),
    ):
        setattr(module, name, value)
    import surface_distance

    return surface_distance


def surface_distance_metrics(
    prediction: Mask, reference: Mask, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """nsd, hd95_mm and hd100_mm as surface-distance computes them; neither mask empty."""
    package = surface_distance_package()
    surfaces = package.compute_surface_distances(reference, prediction, spacing_mm)
    return {
        "nsd": float(package.compute_surface_dice_at_tolerance(surfaces, tolerance_mm)),
        "hd95_mm": float(package.compute_robust_hausdorff(surfaces, 95)),
        "hd100_mm": float(package.compute_robust_hausdorff(surfaces, 100)),
    }


def monai_nsd(
    prediction: Mask, reference: Mask, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """NSD with surfels as MONAI computes it, in float32."""
    import torch
    from monai.metrics import compute_surface_dice

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's own use of its own old argument
        value = compute_surface_dice(
            torch.from_numpy(prediction)[None, None],
            torch.from_numpy(reference)[None, None],
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(spacing_mm),
            use_subvoxels=True,
        )
    return float(value)


def random_blob(
    shape: Sequence[int], seed: int, smoothness: float = 3.0, fraction: float = 0.1
) -> Mask:
    """A random smooth mask that covers `fraction` of the volume and touches the border freely."""
    noise = np.random.default_rng(seed).normal(size=shape)
    field = ndimage.gaussian_filter(noise, smoothness, mode="nearest")
    return field > np.quantile(field, 1 - fraction)


def box(start: Sequence[int], size: Sequence[int], shape: Sequence[int] = SHAPE) -> Mask:
    """A box of `size` voxels from `start` on, in an image of `shape`."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask
