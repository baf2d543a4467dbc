"""Affine maps: rotation, scale and mirroring as one matrix, and one resampling by it.

The published code rotates by up to 5 degrees and scales by 0.9 to 1.1 on copies made before the
split (validation saw rotated training cases) and turns image and label in different planes. Here
image and masks go by one map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mvl_dist.augment.batch import rows, sent

Seed = tuple[int, int, int]
Array = npt.NDArray[np.floating]

PAPER_ROTATION_DEGREES = 5.0
PAPER_SCALE = (0.9, 1.1)

# nnunetv2 2.8.1, nnUNetTrainer.get_training_transforms.
ROTATION_PROBABILITY, SCALE_PROBABILITY, MIRROR_PROBABILITY = 0.2, 0.2, 0.5
ROTATION_DEGREES, IN_PLANE_ROTATION_DEGREES = 30.0, 180.0
SCALE = (0.7, 1.4)
ANISOTROPY = 3.0


def paper_map(shape: Sequence[int], seed: Seed) -> Array:
    """Map of one sample as the paper has it, (3, 4) float32, in `affine_grid`'s convention.

    Rotation about each axis and one scale for all, in voxels of the grid, about its centre.

    Args:
        shape: D, H, W.
        seed: what the sample's map depends on, and nothing else.
    """
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    angles = generator.uniform(-PAPER_ROTATION_DEGREES, PAPER_ROTATION_DEGREES, 3)
    scale = generator.uniform(*PAPER_SCALE)
    return _normalised(_rotation(angles) / scale, np.asarray(shape, dtype=np.float64))


def strong_map(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    mirror_axes: Sequence[int],
    generator: np.random.Generator,
) -> Array | None:
    """Map of one sample as nnU-Net has it, (3, 4) float32; None where nothing was drawn.

    Turns and scales are in millimetres, so that a turn on anisotropic voxels does not shear. Where
    one axis is more than three times coarser than the others, turns (up to 180 degrees then) and
    scales stay within its planes, as nnU-Net's do: interpolating across them would blur.

    Args:
        shape: D, H, W.
        spacing_mm: size of a voxel along D, H, W.
        mirror_axes: axes (0 to 2 for D, H, W) that may be mirrored, each with probability 1/2.
    """
    # Everything is drawn always, so that no draw decides where another one lies in the stream.
    turned, scaled = generator.random(2) < (ROTATION_PROBABILITY, SCALE_PROBABILITY)
    angles = generator.uniform(-1, 1, 3)
    scale = generator.uniform(*SCALE)
    mirrored = generator.random(3) < MIRROR_PROBABILITY
    mirrored[[axis for axis in range(3) if axis not in mirror_axes]] = False
    if not (turned or scaled or mirrored.any()):
        return None

    coarse = coarse_axis(spacing_mm)
    scales = np.full(3, scale if scaled else 1.0)
    angles *= (ROTATION_DEGREES if coarse is None else IN_PLANE_ROTATION_DEGREES) * turned
    if coarse is not None:
        scales[coarse] = 1.0
        angles[[axis for axis in range(3) if axis != coarse]] = 0.0
    # From here on x, y, z = W, H, D. What lies at a place in the result is fetched from
    # rotation @ scale @ mirror of that place.
    matrix = _rotation(angles[::-1]) * (scales * np.where(mirrored, -1.0, 1.0))[::-1]
    return _normalised(matrix, np.asarray(shape) * np.asarray(spacing_mm))


def coarse_axis(spacing_mm: Sequence[float]) -> int | None:
    """The axis that is more than three times coarser than both others, if there is one."""
    *_, second, coarsest = sorted(spacing_mm)
    return list(spacing_mm).index(coarsest) if coarsest / second > ANISOTROPY else None


def resample(
    image: torch.Tensor, target: torch.Tensor, maps: Sequence[Array], *, continues: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and masks of a batch by one map a sample, each value interpolated once, linearly.

    Args:
        image: (B, C, D, H, W), any float dtype; edges are continued outwards.
        target: (B, R, D, H, W) of 0 and 1.
        maps: B maps, each (3, 4) float32.
        continues: the target's edges are continued outwards too; else it is 0 there.

    Returns:
        Image and target, both as float32, target of 0 and 1.
    """
    grid = places(sent(np.stack(maps), image.device), image.shape[2:])
    moved = F.grid_sample(
        image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    masks = F.grid_sample(
        target.float(),
        grid,
        mode="bilinear",
        padding_mode="border" if continues else "zeros",
        align_corners=False,
    )
    return moved, (masks > 0.5).float()


def places(theta: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`F.affine_grid` without align_corners, (B, D, H, W, 3): from where each voxel is fetched.

    Summed here, because a matrix product's last bit may follow the batch's size, and because it is
    allowed to run in TF32 where a user chose so: a tenth of a voxel at 128.

    Args:
        theta: (B, 3, 4) float32.
        shape: D, H, W.
    """
    grid = theta[:, None, None, None, :, 3]
    for axis in range(3):  # D, H, W are the columns z, y, x
        size = shape[axis]
        steps = torch.arange(size, dtype=torch.float32, device=theta.device)
        centres = ((2 * steps + 1) / size - 1).view(*(-1 if k == axis else 1 for k in range(3)), 1)
        grid = grid + centres * theta[:, None, None, None, :, 2 - axis]
    return grid


def move(
    image: torch.Tensor, target: torch.Tensor, maps: Mapping[int, Array], *, continues: bool
) -> None:
    """Move some rows of a batch in place, each by its map; flipped where the map only mirrors.

    Args:
        image, target: as `resample` takes them, but float32.
        maps: of the rows that move, ascending.
    """
    flips = {row: _mirrored_axes(theta) for row, theta in maps.items()}
    for axis in range(3):
        flipped = [row for row, axes in flips.items() if axes is not None and axis in axes]
        for part in (image, target) if flipped else ():
            with rows(part, flipped) as samples:
                samples.copy_(samples.flip(2 + axis))
    moving = [row for row, axes in flips.items() if axes is None]
    if moving:
        with rows(image, moving) as images, rows(target, moving) as targets:
            moved = resample(images, targets, [maps[row] for row in moving], continues=continues)
            images.copy_(moved[0])
            targets.copy_(moved[1])


def _mirrored_axes(theta: Array) -> list[int] | None:
    """Axes (0 to 2 for D, H, W) that a map mirrors, if it does nothing else."""
    if not np.array_equal(np.abs(theta), np.eye(3, 4)):
        return None
    return [2 - int(axis) for axis in np.flatnonzero(np.diagonal(theta) < 0)]


def _rotation(angles_degrees: Array) -> Array:
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        rotation = rotation @ turn
    return rotation


def _normalised(matrix: Array, extents: Array) -> Array:
    """A matrix on (x, y, z) as `affine_grid` takes it; `extents` of the volume along D, H, W."""
    # affine_grid's coordinates run from -1 to 1 along every axis: a turn must be carried over by
    # the half sizes.
    half = extents[::-1] / 2
    theta = np.zeros((3, 4), dtype=np.float32)
    theta[:, :3] = matrix * half[None, :] / half[:, None]
    return theta
