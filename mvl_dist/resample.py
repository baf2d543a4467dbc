"""Resampling of images to another grid: pure functions on arrays.

Both grids cover the same box; voxel centres lie at half-integers of it (`align_corners=False`).

Separable linear interpolation, one small sparse weight matrix an axis. Where an axis shrinks, the
triangle kernel is widened by the shrink factor, as in Pillow and in torch's `antialias=True`;
without that a scan of 512 pixels read at every fourth aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mvl_dist.half import to_half

Shape3D = tuple[int, int, int]

# Rows of a plane that are transposed at once.
_TURNED_ROWS = 32


def shape_at(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> Shape3D:
    """Voxels along D, H, W of a scan at another spacing; at least one an axis."""
    d, h, w = (
        max(1, round(size * old / new))
        for size, old, new in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return d, h, w


# The axes of a case, to two shapes: each of its labels asks for the same ones.
@lru_cache(maxsize=6)
def linear_weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """Weights (new, old) of one axis, read-only; every row sums to 1.

    The kernel is cut at the border and its row scaled up, which for growing axes equals
    replicating the edge.
    """
    scale = old / new
    support = max(1.0, scale)
    centre = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) - centre[:, None]) / support)
    weights /= weights.sum(axis=1, keepdims=True)
    rounded = weights.astype(np.float32)
    rounded.flags.writeable = False
    return rounded


class PlaneResampler:
    """Resamples one volume that comes plane by plane along D, and hands on each finished plane.

    The whole volume is never held as float32, and a plane stays in the processor's cache while it
    is worked on. Axes are taken in the order of `resampled_axes`; the sums of an axis run in the
    order of its voxels, so that the result is the same on every machine and for any number of
    threads. data_prep/gpu.py makes the same sums on a GPU.

    Args:
        weights: (new, old) of D, H, W.
        store: takes the number of a finished plane and its values, float32 (H, W), which are valid
            during the call only. They may be a transposed view.
    """

    def __init__(
        self,
        weights: Sequence[npt.NDArray[np.float32]],
        store: Callable[[int, npt.NDArray[np.float32]], None],
    ) -> None:
        order = resampled_axes(weights)
        along_d = order.index(0) if 0 in order else len(order)
        # Sparse, because a row has 2 weights (2 x shrink factor where it shrinks) and because a
        # BLAS product may differ in its last bit with the number of threads: checksums must not.
        self._matrices = [sparse.csr_array(matrix) for matrix in weights]
        self._before, self._after = order[:along_d], order[along_d + 1 :]
        self._store = store
        self._next = 0
        # Of each source plane: the finished planes that take from it, by which weight.
        self._takers: list[list[tuple[int, np.float32]]] = [[] for _ in range(weights[0].shape[1])]
        self._last = [0] * weights[0].shape[0]
        if 0 in order:
            for row, column in zip(*np.nonzero(weights[0]), strict=True):
                self._takers[column].append((int(row), weights[0][row, column]))
                self._last[row] = max(self._last[row], int(column))
        self._resamples_d = 0 in order
        self._open: dict[int, npt.NDArray[np.float32]] = {}
        self._scratch: npt.NDArray[np.float32] | None = None

    def push(self, plane: npt.NDArray[np.float32]) -> None:
        """Take the next source plane (H, W), C order; it is not changed and not kept."""
        number, self._next = self._next, self._next + 1
        if not self._resamples_d:
            self._store(number, self._in_plane(plane, self._before))
            return
        if not self._takers[number]:
            return
        plane = self._in_plane(plane, self._before)
        if self._scratch is None:
            self._scratch = np.empty_like(plane)
        for row, weight in self._takers[number]:
            if row not in self._open:
                self._open[row] = np.multiply(plane, weight)
            else:
                np.multiply(plane, weight, out=self._scratch)
                self._open[row] += self._scratch
            if self._last[row] == number:
                self._store(row, self._in_plane(self._open.pop(row), self._after))

    def _in_plane(
        self, plane: npt.NDArray[np.float32], axes: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        for axis in axes:
            if axis == 1:
                plane = self._matrices[1] @ np.ascontiguousarray(plane)
            else:
                plane = (self._matrices[2] @ _transposed(plane)).T
        return plane


def _transposed(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A plane (H, W) as (W, H), C order."""
    turned = plane.T
    if turned.flags.c_contiguous:
        return turned
    out = np.empty(turned.shape, plane.dtype)
    _copy_turned(plane, out)
    return out


def _copy_turned(plane: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write a plane's transpose into `out`, a few cache lines of each row at a time.

    NumPy goes down whole columns, and in rows of 512 voxels these all fall into the same few sets
    of the processor's cache.
    """
    for start in range(0, len(plane), _TURNED_ROWS):
        part = slice(start, start + _TURNED_ROWS)
        out[:, part] = plane[part].T


def resampled_axes(weights: Sequence[npt.NDArray[np.float32]]) -> list[int]:
    """The axes of D, H, W (0, 1, 2) that change, in the order in which they are resampled.

    The one that shrinks most goes first: the others then have less to do.
    """
    order = sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1])
    return [axis for axis in order if not _is_identity(weights[axis])]


def _is_identity(weights: npt.NDArray[np.float32]) -> bool:
    return bool(np.array_equal(weights, np.eye(*weights.shape, dtype=np.float32)))


def image_resampler(
    old: Shape3D, out: npt.NDArray[np.float16] | npt.NDArray[np.float32]
) -> PlaneResampler:
    """A resampler from `old` = (D0, H0, W0) that fills `out` (D, H, W), float32 or float16."""
    rounded = np.empty(0, np.float16)

    def keep(number: int, plane: npt.NDArray[np.float32]) -> None:
        nonlocal rounded
        if out.dtype != np.float16:
            out[number] = plane
            return
        turned = not plane.flags.c_contiguous
        plane = plane.T if turned else plane
        if rounded.shape != plane.shape:
            rounded = np.empty(plane.shape, np.float16)
        to_half(plane, rounded)
        if turned:
            _copy_turned(rounded, out[number])
        else:
            out[number] = rounded

    weights = [linear_weights(n, m) for n, m in zip(old, out.shape, strict=True)]
    return PlaneResampler(weights, keep)


def resample_image(volume: npt.NDArray[Any], shape: Shape3D) -> npt.NDArray[np.float32]:
    """Resample the last three axes of (..., D0, H0, W0) to `shape`; returns (..., D, H, W)."""
    out = np.empty((*volume.shape[:-3], *shape), dtype=np.float32)
    for index in np.ndindex(volume.shape[:-3]):
        resampler = image_resampler(volume.shape[-3:], out[index])
        for plane in volume[index]:
            resampler.push(np.ascontiguousarray(plane, dtype=np.float32))
    return out
