"""Where the labels are: voxels that patch sampling may centre on, drawn once at conversion."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from mvl_dist.label_resampling import bounding_box

# nnU-Net's number; enough for a patch never to see the same centre twice within many epochs.
VOXELS_A_LABEL = 10_000


def sample_foreground(
    label: npt.NDArray[np.uint8], case: str, limit: int = VOXELS_A_LABEL
) -> npt.NDArray[np.uint16]:
    """Voxels of every label of a map (D, H, W), at most `limit` a label, all equally likely.

    The draw depends on the case's name and the map alone. Source: nnU-Net v2's class locations.

    Returns:
        (N, 4) rows d, h, w, label; sorted by label, then in C order. N is 0 without a label.
    """
    seed = int.from_bytes(hashlib.sha256(f"foreground/{case}".encode()).digest()[:8], "little")
    # Raw numbers of the bit generator: numpy keeps their stream, but not that of `choice`.
    draws = np.random.PCG64(seed)
    box = bounding_box(label)
    if box is None:
        return np.empty((0, 4), np.uint16)
    inside = np.ascontiguousarray(label[box])
    corner = [part.start for part in box]
    rows = []
    for value in range(1, int(inside.max()) + 1):
        voxels = np.flatnonzero(inside == value)
        if voxels.size > limit:
            voxels = np.sort(voxels[_lowest(draws.random_raw(voxels.size), limit)])
        places = np.stack(np.unravel_index(voxels, inside.shape), axis=1) + corner
        rows.append(np.insert(places, 3, value, axis=1).astype(np.uint16))
    return np.concatenate(rows)


def _lowest(keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.intp]:
    """Places of the `count` lowest of uniformly drawn keys."""
    # Partitioning millions of keys takes ten times as long as passing over the clearly high ones.
    likely = np.flatnonzero(keys < np.uint64(min(2**64 - 1, 2 * count * 2**64 // keys.size)))
    if likely.size <= count:
        return np.argpartition(keys, count)[:count]
    return likely[np.argpartition(keys[likely], count)[:count]]
