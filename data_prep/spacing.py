"""The spacing that a task is resampled to, by nnU-Net's rule, and the shape of a case at it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from data_prep.source import Pair
from mvl_dist.nifti import orientation_of
from mvl_dist.store import Shape3D, Spacing

# How much coarser an axis must be, and how many fewer voxels it must have, to count as anisotropic.
ANISOTROPY = 3

Geometry = tuple[Spacing, Shape3D]


def geometry_of(pair: Pair) -> Geometry | None:
    """Spacing and shape along D, H, W by the image's header alone; None if it cannot be read."""
    # A bad file is named with its reason when it is converted.
    with contextlib.suppress(Exception):
        image = nib.load(pair.image)
        shape = image.shape[:3]
        orientation = orientation_of(image.affine, shape)
        spacing = orientation.spacing_mm
        if len(shape) == 3 and np.isfinite(spacing).all() and min(spacing) > 0:
            return spacing, orientation.canonical_shape(shape)
    return None


def task_spacing(geometries: Sequence[Geometry]) -> Spacing:
    """Target spacing of a task along D, H, W in millimetres.

    The median over its cases, an axis at a time. Where the coarsest axis is more than three times
    as coarse as the others and has fewer than a third of their voxels, it gets the 10th percentile
    of its spacings instead, though none finer than the coarser of the others: the median would
    smear the few slices of the better scans.

    Source: nnU-Net v2, `ExperimentPlanner.determine_fullres_target_spacing` (Isensee et al., Nat
    Methods 18:203, 2021); there after cropping to the non-zero voxels, here of the whole scans.
    """
    spacings, shapes = (np.array(part, dtype=np.float64) for part in zip(*geometries, strict=True))
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    coarser = target[others].max()
    if target[worst] > ANISOTROPY * coarser and size[worst] * ANISOTROPY < size[others].min():
        tenth = float(np.percentile(spacings[:, worst], 10))
        target[worst] = tenth if tenth >= coarser else coarser + 1e-5
    d, h, w = (float(value) for value in target)
    return d, h, w
