"""Augmentation on the device, whole batches at once, in one resampling.

The published code rotates by up to 5 degrees and scales by 0.9 to 1.1 on copies made before the
split (validation saw rotated training cases) and turns image and label in different planes. Here
training batches alone are augmented, as they are drawn, image and label by one map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

MAX_ROTATION_DEGREES = 5.0
SCALE_RANGE = (0.9, 1.1)


def random_affine(shape: Sequence[int], seed: Sequence[int]) -> np.ndarray:
    """Affine map of one sample, (3, 4) float32, in `affine_grid`'s convention (x, y, z = W, H, D).

    Rotation about each axis and one scale for all, in voxels of the grid, about its centre.

    Args:
        shape: D, H, W.
        seed: what the sample's map depends on, and nothing else.
    """
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    angles = np.deg2rad(generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES, 3))
    scale = generator.uniform(*SCALE_RANGE)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        rotation = rotation @ turn
    # affine_grid's coordinates run from -1 to 1 along every axis: a turn in voxels must be
    # carried over by the half sizes.
    half = np.asarray(shape[::-1], dtype=np.float64) / 2
    theta = np.zeros((3, 4), dtype=np.float32)
    theta[:, :3] = (rotation / scale) * half[None, :] / half[:, None]
    return theta


def augment(
    image: torch.Tensor,
    target: torch.Tensor,
    seed: int,
    epoch: int,
    positions: Sequence[int],
    beyond: str = "zeros",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate and scale a batch; each sample's map depends on (seed, epoch, position) alone.

    Args:
        image: (B, C, D, H, W), any float dtype; edges are continued outwards.
        target: (B, R, D, H, W) of 0 and 1.
        positions: B positions in the epoch's order.
        beyond: what the target is outside: `zeros` (a whole scan ends there), or `border`, its own
            edge continued as the image's is (a crop does not).

    Returns:
        Image as float32 and target as float32 of 0 and 1.
    """
    shape = image.shape[2:]
    theta = torch.from_numpy(np.stack([random_affine(shape, (seed, epoch, p)) for p in positions]))
    grid = F.affine_grid(theta.to(image.device), [len(positions), 1, *shape], align_corners=False)
    moved = F.grid_sample(
        image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    masks = F.grid_sample(
        target.float(), grid, mode="bilinear", padding_mode=beyond, align_corners=False
    )
    return moved, (masks > 0.5).float()
