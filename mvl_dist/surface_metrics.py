"""How far apart the surfaces of two masks lie, in millimetres.

NSD and HD measure surfaces made of surface elements (surfels) as DeepMind's surface-distance does:
every corner shared by 2x2x2 voxels, some of them inside and some outside, carries the area of the
marching-cubes polygons that separate them. Outside the image is background.

    NSD      area within the tolerance of the other surface / area, both surfaces pooled
    HD95     the larger of the two directed 95th percentiles, weighted by area, not interpolated
    HD100    the larger of the two directed maxima; a false positive too small for HD95 shows here
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

# A k-d tree's time grows with the surface, a distance transform's with the box. At 128^3 the tree
# wins up to 10 % surfels between smooth surfaces, but against a noisy early prediction only up to
# 2 %, where it can also lose by a factor of ten. Large organs have 1 to 3 %.
KDTREE_MAX_SURFEL_FRACTION = 0.03
# Whatever the box: so few cost the tree 2 to 3 times less (a hippocampus has 2500).
KDTREE_ALWAYS_BELOW = 5000
# Three voxels of 0.1 mm are 0.30000000000000004 mm in float64, and still within 0.3 mm.
TIE_TOLERANCE = 1e-9

# A surfel's polygons depend on how the inside corners of a 2x2x2 cell connect along its edges, and
# a cell has only these six connected shapes, up to mirroring and permuting the axes. Corners are
# (d, h, w); every row is one triangle's normal without its sign, its length the triangle's area,
# in eighths of a voxel's faces. Corners that don't connect add their areas. The triangles are those
# of the surface-distance package (DeepMind, Apache-2.0), whose 256 areas follow from them.
_CONNECTED_SHAPES: tuple[tuple[str, Sequence[tuple[int, int, int]], NDArray[np.int64]], ...] = (
    ("corner", [(0, 0, 0)], np.array([(1, 1, 1)])),
    ("edge", [(0, 0, 0), (0, 0, 1)], np.array([(2, 2, 0), (2, 2, 0)])),
    ("bend", [(0, 0, 0), (0, 0, 1), (0, 1, 0)], np.array([(4, 0, 0), (2, 2, 2), (1, 1, 1)])),
    (
        "face",
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)],
        np.array([(4, 0, 0), (4, 0, 0)]),
    ),
    (
        "tripod",
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)],
        np.array([(2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)]),
    ),
    (
        "path along d, w, h",
        [(1, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1)],
        np.array([(3, 3, 3), (0, 2, 2), (2, 0, 2), (1, 1, 1)]),
    ),
)

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]


def surface_metrics(
    prediction: Mask,
    reference: Mask,
    spacing: tuple[float, float, float],
    tolerance_mm: float,
    threads: int,
) -> dict[str, float]:
    """NSD, HD95 and HD100 of two masks of which neither is empty, cropped to their union."""
    codes = [_cell_codes(mask) for mask in (prediction, reference)]
    surfels = [(code != 0) & (code != 255) for code in codes]
    areas = [surfel_area_table(spacing)[c[s]] for c, s in zip(codes, surfels, strict=True)]
    distances = _distances_between(surfels[0], surfels[1], spacing, threads)

    limit = tolerance_mm * (1 + TIE_TOLERANCE)
    directions = list(zip(distances, areas, strict=True))
    near = sum(float(area[distance <= limit].sum()) for distance, area in directions)
    return {
        "nsd": near / sum(float(area.sum()) for area in areas),
        "hd95_mm": max(_percentile(distance, area, 95) for distance, area in directions),
        "hd100_mm": max(float(distance.max()) for distance in distances),
    }


@functools.lru_cache(maxsize=64)
def surfel_area_table(spacing_mm: tuple[float, float, float]) -> Values:
    """Surface area in mm^2 of each of the 256 possible 2x2x2 cells: (256,).

    Bit 4d + 2h + w of a cell's code is set where its corner (d, h, w) is inside.
    """
    d, h, w = spacing_mm
    normals_mm2 = _cell_normals() * np.array([h * w, d * w, d * h])
    table: Values = np.linalg.norm(normals_mm2, axis=-1).sum(axis=-1)
    table.flags.writeable = False  # the cache hands the same array to everyone
    return table


@functools.cache
def _cell_normals() -> Values:
    """Triangle normals of each cell code at unit spacing, zero-padded: (256, 4 triangles, 3)."""
    of_shape: dict[int, NDArray[np.int64]] = {}
    for _, corners, normals in _CONNECTED_SHAPES:
        for axes in itertools.permutations(range(3)):
            for mirror in itertools.product((0, 1), repeat=3):
                moved = np.array(corners)[:, axes] ^ mirror
                of_shape[sum(1 << bit for bit in moved @ (4, 2, 1))] = normals[:, axes]

    table = np.zeros((256, 4, 3))
    for code in range(256):
        # Inside and outside share their boundary: describe the side with fewer corners.
        side = code if code.bit_count() <= 4 else 255 - code
        triangles = [n for shape in _connected_parts(side) for n in of_shape[shape]]
        table[code, : len(triangles)] = np.reshape(triangles, (-1, 3)) / 8
    return table


def _connected_parts(code: int) -> list[int]:
    """Splits a cell's inside corners into the parts that connect along the cell's edges."""
    parts = []
    while code:
        part, grown = 0, code & -code
        while part != grown:
            part = grown
            for corner in range(8):
                if part >> corner & 1:
                    # Two corners share an edge where one bit of their number differs.
                    grown |= code & sum(1 << (corner ^ axis) for axis in (1, 2, 4))
        parts.append(part)
        code &= ~part
    return parts


def _cell_codes(mask: Mask) -> NDArray[np.uint8]:
    """The code of every 2x2x2 cell of a mask in background: (D, H, W) -> (D + 1, H + 1, W + 1)."""
    codes = np.pad(mask, 1).view(np.uint8)
    codes = codes[:, :, :-1] | codes[:, :, 1:] << np.uint8(1)
    codes = codes[:, :-1] | codes[:, 1:] << np.uint8(2)
    return codes[:-1] | codes[1:] << np.uint8(4)


def _distances_between(
    first: Mask, second: Mask, spacing: tuple[float, float, float], threads: int
) -> tuple[Values, Values]:
    """Distance in mm from each surfel of either map to the nearest of the other, in C order."""
    n_surfels = (np.count_nonzero(first) + np.count_nonzero(second)) / 2
    if n_surfels < max(KDTREE_ALWAYS_BELOW, KDTREE_MAX_SURFEL_FRACTION * first.size):
        a, b = (np.argwhere(surfels) * spacing for surfels in (first, second))
        tree_a, tree_b = (KDTree(p, leafsize=16, balanced_tree=False) for p in (a, b))
        return tree_b.query(a, workers=threads)[0], tree_a.query(b, workers=threads)[0]
    with ThreadPoolExecutor(min(threads, 2)) as pool:
        from_first, from_second = pool.map(
            lambda there, here: _distances_by_transform(there, here, spacing),
            (first, second),
            (second, first),
        )
    return from_first, from_second


def _distances_by_transform(there: Mask, here: Mask, spacing: tuple[float, float, float]) -> Values:
    """Distance in mm from each surfel of `there` to the nearest of `here`, in C order."""
    # Where the nearest one lies, and distances at the surfels alone: scipy makes distances of the
    # whole box in float64, which takes longer than to find them.
    nearest = ndimage.distance_transform_edt(
        ~here, sampling=spacing, return_distances=False, return_indices=True
    )
    apart_mm = (nearest[:, there].T - np.argwhere(there)) * spacing
    distances: Values = np.sqrt(np.square(apart_mm).sum(axis=1))
    return distances


def _percentile(distances: Values, areas: Values, percent: float) -> float:
    """The smallest distance within which at least `percent` of the area lies."""
    order = np.argsort(distances)
    area_within = np.cumsum(areas[order])
    wanted = area_within[-1] * percent / 100 * (1 - TIE_TOLERANCE)
    return float(distances[order[np.searchsorted(area_within, wanted)]])
