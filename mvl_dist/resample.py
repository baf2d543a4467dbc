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

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mvl_dist.half import to_half

Shape3D = tuple[int, int, int]
Box = tuple[slice, slice, slice]

# Steps between no coverage and full coverage that a label's ranking tells apart.
_SCORES = 10_000
# Voxels that are counted at once: np.bincount makes 8-byte integers of them.
_COUNTED = 1 << 18


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
    is worked on. Axes are taken in the order of `_order`, the one that shrinks most first; the sums
    of an axis run in the order of its voxels, so that the result is the same on every machine and
    for any number of threads.

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
        order = [axis for axis in _order(weights) if not _is_identity(weights[axis])]
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
                plane = (self._matrices[2] @ np.ascontiguousarray(plane.T)).T
        return plane


def _order(weights: Sequence[npt.NDArray[np.float32]]) -> list[int]:
    """The axis that shrinks most goes first: the others then have less to do."""
    return sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1])


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
        out[number] = rounded.T if turned else rounded

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


def bounding_box(marked: npt.NDArray[Any]) -> Box | None:
    """The box of all that is not 0 in (D, H, W), or None."""
    # Maxima, not any(): NumPy is ten times faster at them for bytes.
    planes = np.flatnonzero([plane.max() for plane in marked])
    if not planes.size:
        return None
    d = slice(int(planes[0]), int(planes[-1]) + 1)
    shadow = marked[d].max(axis=0)
    hits = [np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0)]
    h, w = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    return d, h, w


def _scores(
    mask: npt.NDArray[np.bool_], place: Box, old: Shape3D, shape: Shape3D
) -> tuple[Box, npt.NDArray[np.uint16]]:
    """Coverage of each voxel by a mask in ten-thousandths: the box of `shape` it reaches, values.

    Rounded, so that a symmetric tie stays one on every machine.

    Args:
        mask: what lies in `place` of the source; all else is empty.
    """
    matrices, target = [], []
    for n, m, part in zip(old, shape, place, strict=True):
        columns = linear_weights(n, m)[:, part]
        reached = np.flatnonzero(columns.any(axis=1))
        target.append(slice(int(reached[0]), int(reached[-1]) + 1))
        matrices.append(columns[target[-1]])
    scores = np.empty([part.stop - part.start for part in target], np.uint16)

    def keep(number: int, plane: npt.NDArray[np.float32]) -> None:
        scaled = plane * np.float32(_SCORES)
        np.rint(scaled, out=scaled)
        np.copyto(scores[number], scaled, casting="unsafe")

    resampler = PlaneResampler(matrices, keep)
    for plane in mask:
        resampler.push(plane.astype(np.float32))
    return (target[0], target[1], target[2]), scores


def _assign_best(
    region: npt.NDArray[np.uint8], scores: npt.NDArray[np.uint16], wanted: int, value: int
) -> None:
    """Give `value` to the `wanted` voxels of highest score; of equal ones the first in C order."""
    flat = scores.reshape(-1)
    counts = np.zeros(_SCORES + 2, np.int64)
    for start in range(0, flat.size, _COUNTED):
        part = flat[start : start + _COUNTED]
        # All but the label's rim is covered not at all or wholly: only the rim is worth a count.
        rim = part[part - np.uint16(1) < _SCORES - 1]
        counts += np.bincount(rim, minlength=counts.size)
        counts[_SCORES] += np.count_nonzero(part >= _SCORES)
    at_least = np.cumsum(counts[::-1])[::-1]  # voxels of this score or a higher one
    at_least[0] = 0  # what is not covered is no candidate
    enough = np.flatnonzero(at_least >= wanted)
    limit = int(enough[-1]) if enough.size else 0
    np.copyto(region, np.uint8(value), where=scores > limit)
    if limit:
        missing = wanted - int(at_least[limit + 1])
        ties = np.flatnonzero(flat == limit)[:missing]
        region[np.unravel_index(ties, region.shape)] = value


def resample_label(label: npt.NDArray[np.uint8], shape: Shape3D) -> npt.NDArray[np.uint8]:
    """`resample_labels` to one shape."""
    return resample_labels(label, [shape])[0]


def resample_labels(
    label: npt.NDArray[np.uint8], shapes: Sequence[Shape3D]
) -> list[npt.NDArray[np.uint8]]:
    """Resample a label map (D0, H0, W0) to several shapes so that every label keeps its volume.

    In order of increasing size each label takes its k = max(1, round(voxels * new / old)) free
    voxels of highest coverage, so that a small lesion is served before the organ around it. Ties
    go to the first voxel in C order. The same shape gives the identical array.
    """
    outs = {shape: np.zeros(shape, np.uint8) for shape in shapes if shape != label.shape}
    foreground = bounding_box(label) if outs else None
    if foreground is not None:
        _fill(outs, label, foreground)
    return [outs[shape] if shape in outs else np.ascontiguousarray(label) for shape in shapes]


def _fill(
    outs: Mapping[Shape3D, npt.NDArray[np.uint8]], label: npt.NDArray[np.uint8], foreground: Box
) -> None:
    inside = label[foreground]
    # One comparison a label: np.bincount makes 8-byte integers of the voxels.
    counts = [np.count_nonzero(inside == value) for value in range(int(inside.max()) + 1)]
    present = sorted((count, value) for value, count in enumerate(counts) if value and count)
    for count, value in present:
        mask = inside == value
        box = bounding_box(mask)
        assert box is not None
        d, h, w = (
            slice(outer.start + part.start, outer.start + part.stop)
            for outer, part in zip(foreground, box, strict=True)
        )
        for shape, out in outs.items():
            target, scores = _scores(mask[box], (d, h, w), label.shape, shape)
            region = out[target]
            if region.max():
                np.copyto(scores, 0, where=region > 0)
            _assign_best(region, scores, max(1, round(count * out.size / label.size)), value)
