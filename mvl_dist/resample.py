"""Resampling of images and labels to another grid: pure functions on arrays.

Both grids cover the same box; voxel centres lie at half-integers of it (`align_corners=False`).

Images: separable linear interpolation, one small sparse weight matrix an axis. Where an axis
shrinks, the triangle kernel is widened by the shrink factor, as in Pillow and in torch's
`antialias=True`; without that a scan of 512 pixels read at every fourth aliases.

Labels: each label's coverage (its indicator, resampled as an image) ranks the voxels, and the label
takes as many of the best-covered ones as keep its volume. The code published with the paper
interpolates the label values and calls everything above 0 foreground: every voxel that a mask
merely touches joins it (volume x 1.52 on the hippocampus at 128^3), and labels of different value
mix. Nearest neighbour keeps values but drops a lesion that falls between two voxel centres.
Here no label grows and none vanishes. A label could only vanish if smaller ones took every voxel
that it covers, which needs more labels than voxels in one neighbourhood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Shape3D = tuple[int, int, int]


def shape_at(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> Shape3D:
    """Voxels along D, H, W of a scan at another spacing; at least one an axis."""
    d, h, w = (
        max(1, round(size * old / new))
        for size, old, new in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return d, h, w


def linear_weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """Weights (new, old) of one axis; every row sums to 1.

    The kernel is cut at the border and its row scaled up, which for growing axes equals
    replicating the edge.
    """
    scale = old / new
    support = max(1.0, scale)
    centre = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) - centre[:, None]) / support)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _along_axis(
    volume: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], axis: int
) -> npt.NDArray[np.float32]:
    # Sparse, because a row has 2 weights (2 x shrink factor where it shrinks) and because a BLAS
    # product may differ in its last bit with the number of threads: checksums must not.
    rows = np.moveaxis(volume, axis, 0)
    product = sparse.csr_array(weights) @ rows.reshape(rows.shape[0], -1)
    return np.moveaxis(product.reshape(-1, *rows.shape[1:]), 0, axis)


def _separable(
    volume: npt.NDArray[np.float32], weights: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Apply one matrix an axis to (D, H, W); the axis that shrinks most goes first."""
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        if weights[axis].shape[0] != weights[axis].shape[1] or not _is_identity(weights[axis]):
            volume = _along_axis(volume, weights[axis], axis)
    return np.ascontiguousarray(volume)


def _is_identity(weights: npt.NDArray[np.float32]) -> bool:
    return bool(np.array_equal(weights, np.eye(*weights.shape, dtype=np.float32)))


def resample_image(volume: npt.NDArray[Any], shape: Shape3D) -> npt.NDArray[np.float32]:
    """Resample the last three axes of (..., D0, H0, W0) to `shape`; returns (..., D, H, W)."""
    old = volume.shape[-3:]
    weights = [linear_weights(n, m) for n, m in zip(old, shape, strict=True)]
    out = np.empty((*volume.shape[:-3], *shape), dtype=np.float32)
    for index in np.ndindex(volume.shape[:-3]):
        out[index] = _separable(volume[index].astype(np.float32, copy=False), weights)
    return out


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _coverage(
    mask: npt.NDArray[np.bool_], shape: Shape3D
) -> tuple[tuple[slice, ...], npt.NDArray[np.float32]]:
    """Resampled indicator of a non-empty mask: the box of `shape` that it reaches, values there."""
    source = _bounding_box(mask)
    matrices, target = [], []
    for old, new, part in zip(mask.shape, shape, source, strict=True):
        columns = linear_weights(old, new)[:, part]
        reached = np.flatnonzero(columns.any(axis=1))
        target.append(slice(int(reached[0]), int(reached[-1]) + 1))
        matrices.append(columns[target[-1]])
    return tuple(target), _separable(mask[source].astype(np.float32), matrices)


def resample_label(label: npt.NDArray[np.uint8], shape: Shape3D) -> npt.NDArray[np.uint8]:
    """Resample a label map (D0, H0, W0) to `shape` so that every label keeps its volume.

    In order of increasing size each label takes its k = max(1, round(voxels * new / old)) free
    voxels of highest coverage, so that a small lesion is served before the organ around it. Ties
    go to the first voxel in C order. The same shape gives the identical array.
    """
    if label.shape == tuple(shape):
        return np.ascontiguousarray(label)
    counts = np.bincount(label.ravel(), minlength=256)
    present = sorted((int(counts[value]), value) for value in range(1, 256) if counts[value])
    out = np.zeros(shape, dtype=np.uint8)
    for count, value in present:
        box, coverage = _coverage(label == value, shape)
        region = out[box]
        # Rounded, so that a symmetric tie stays one on every machine.
        score = np.where(region == 0, np.round(coverage, 4), 0).ravel()
        candidates = np.flatnonzero(score > 0)
        wanted = max(1, round(count * out.size / label.size))
        best = candidates[np.argsort(-score[candidates], kind="stable")[:wanted]]
        region[np.unravel_index(best, region.shape)] = value
    return out
