"""Resampling of label maps to another grid, so that no label grows and none vanishes.

Each label's coverage (its indicator, resampled as an image) ranks the voxels, and the label
takes as many of the best-covered ones as keep its volume. The code published with the paper
interpolates the label values and calls everything above 0 foreground: every voxel that a mask
merely touches joins it (volume x 1.52 on the hippocampus at 128^3), and labels of different value
mix. Nearest neighbour keeps values but drops a lesion that falls between two voxel centres.
Here no label grows and none vanishes. A label could only vanish if smaller ones took every voxel
that it covers, which needs more labels than voxels in one neighbourhood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mvl_dist.resample import PlaneResampler, Shape3D, linear_weights

Box = tuple[slice, slice, slice]

# Steps between no coverage and full coverage that a label's ranking tells apart.
_SCORES = 10_000
# Voxels that are counted at once: np.bincount makes 8-byte integers of them.
_COUNTED = 1 << 18


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
