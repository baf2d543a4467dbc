"""Synthetic scans as arrays: a brain with a nested tumour, a trunk with an organ and a lesion.

Axes are x, y, z of RAS+ here (the order of a NIfTI file), unlike the store's D, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Field = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PhantomScan:
    """`image` (x, y, z) or (x, y, z, channel), `label` (x, y, z), spacing along x, y, z."""

    image: Field
    label: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


def _texture(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...]) -> Field:
    """Smooth random field of mean 0 and deviation 1; `sigma` in voxels an axis."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return (field - field.mean()) / field.std()


class _Space:
    """Voxel positions in millimetres from the centre, and blobs in them."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, ...]
    ) -> None:
        self.rng, self.shape, self.spacing = rng, shape, spacing
        self.axes = [
            ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * s).reshape(
                [-1 if axis == other else 1 for other in range(3)]
            )
            for axis, (n, s) in enumerate(zip(shape, spacing, strict=True))
        ]

    def texture(self, scale_mm: float) -> Field:
        return _texture(self.rng, self.shape, tuple(scale_mm / s for s in self.spacing))

    def radius(self, centre: npt.ArrayLike, semi_axes: npt.ArrayLike, rough: float = 0.0) -> Field:
        """Distance from a centre in units of an ellipsoid's semi-axes: below 1 is inside.

        `rough` bends the boundary by that fraction.
        """
        parts = zip(self.axes, np.asarray(centre), np.asarray(semi_axes), strict=True)
        squared = sum(((axis - c) / a) ** 2 for axis, c, a in parts)
        radius = np.sqrt(np.asarray(squared, dtype=np.float32))
        if rough:
            radius = radius * (1 + rough * self.texture(float(np.min(semi_axes)) / 3.5))
        return radius


# Mean intensity in FLAIR, T1w, t1gd, T2w of: grey matter, white matter, fluid, label 1, 2, 3.
_MRI = np.array(
    [
        [0.60, 0.50, 0.52, 0.62],
        [0.50, 0.72, 0.75, 0.45],
        [0.18, 0.20, 0.22, 1.00],
        [0.95, 0.42, 0.45, 0.88],
        [0.72, 0.30, 0.34, 0.98],
        [0.85, 0.46, 1.20, 0.74],
    ],
    dtype=np.float32,
)


def brain(rng: np.random.Generator) -> PhantomScan:
    """Four MRI channels of a brain on exact zeros; labels 1 around 2 around 3."""
    shape = (int(rng.integers(54, 63)), int(rng.integers(60, 69)), int(rng.integers(46, 55)))
    spacing = (2.5, 2.5, 2.5)
    space = _Space(rng, shape, spacing)
    half = np.array(shape) * 2.5 / 2
    inside = space.radius((0, 0, 0), half * rng.uniform(0.82, 0.92, 3), 0.03)
    tissue = np.zeros(shape, dtype=np.intp)
    tissue[inside + 0.10 * space.texture(5.0) < 0.78] = 1
    for side in (-1, 1):
        tissue[
            space.radius((side * half[0] * 0.16, 0, half[2] * 0.1), half * (0.09, 0.4, 0.2)) < 1
        ] = 2

    size = rng.uniform(0.30, 0.46) * half.min()
    direction = rng.standard_normal(3)
    centre = direction / np.linalg.norm(direction) * half * rng.uniform(0.25, 0.45)
    tumour = space.radius(centre, size * rng.uniform(0.85, 1.2, 3), 0.12)
    label = np.zeros(shape, dtype=np.uint8)
    for value, limit in ((1, 1.0), (2, 0.72), (3, 0.45)):
        label[(tumour < limit) & (inside < 1)] = value
    tissue = np.where(label > 0, label + 2, tissue)

    image = np.empty((*shape, 4), dtype=np.float32)
    texture = space.texture(4.0)
    for channel in range(4):
        clean = ndimage.gaussian_filter(_MRI[tissue, channel], 0.6) * (1 + 0.05 * texture)
        bias = np.exp(0.12 * space.texture(40.0))
        noise = rng.normal(0, 0.03, shape).astype(np.float32)
        gain = np.float32(rng.uniform(250, 1200))
        image[..., channel] = np.where(inside < 1, np.maximum((clean * bias + noise) * gain, 1), 0)
    return PhantomScan(image, label, spacing)


def trunk(rng: np.random.Generator) -> PhantomScan:
    """A CT in whole HU: air, fat, soft tissue, spine; organ 1 with a lesion 2 inside it."""
    shape = (int(rng.integers(88, 101)), int(rng.integers(80, 97)), int(rng.integers(24, 33)))
    in_plane, slice_mm = round(float(rng.uniform(0.75, 0.9)), 3), float(rng.choice([3.0, 4.0, 5.0]))
    spacing = (in_plane, in_plane, slice_mm)
    space = _Space(rng, shape, spacing)
    half = np.array(shape) * spacing / 2
    long = (1, 1, 30)  # the trunk runs through all slices

    body = space.radius((0, 0, 0), half * (0.93, 0.86, 1) * long, 0.02)
    hu = np.full(shape, -1000, dtype=np.float32)
    hu[body < 1] = -95
    hu[body < 0.88] = 45
    spine = space.radius((0, -half[1] * 0.55, 0), np.array((6.0, 6.0, half[2])) * long, 0.05)
    hu[spine < 1] = 420
    hu[
        space.radius((half[0] * 0.12, -half[1] * 0.22, 0), np.array((3.5, 3.5, half[2])) * long) < 1
    ] = 160

    organ_axes = half * (0.36, 0.42, 0.62) * rng.uniform(0.9, 1.1, 3)
    organ_centre = half * (-0.36, 0.18, 0) + rng.uniform(-2, 2, 3)
    organ = space.radius(organ_centre, organ_axes, 0.07)
    direction = rng.standard_normal(3)
    offset = direction / np.linalg.norm(direction) * organ_axes * rng.uniform(0.1, 0.5)
    # At least a slice and a half thick, so that the lesion of thick slices is not a single disc.
    lesion_axes = np.maximum(
        rng.uniform(3.5, 7.0) * rng.uniform(0.9, 1.1, 3), (0, 0, 1.5 * slice_mm)
    )
    lesion = space.radius(organ_centre + offset, lesion_axes, 0.10)
    label = np.zeros(shape, dtype=np.uint8)
    label[(organ < 1) & (body < 0.86)] = 1
    label[(lesion < 1) & (label == 1)] = 2
    hu[label == 1] = 115
    hu[label == 2] = 60

    hu = ndimage.gaussian_filter(hu, (0.7, 0.7, 0.0))
    hu += np.where(body < 1, 8 * space.texture(4.0), 0)
    hu += 12 * _texture(rng, shape, (0.6, 0.6, 0.0))
    return PhantomScan(np.clip(np.rint(hu), -1024, 3071), label, spacing)
