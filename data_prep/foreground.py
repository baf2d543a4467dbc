"""Where the labels are: voxels that patch sampling may centre on, drawn once at conversion."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

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
    flat = label.ravel()
    rows = []
    for value in np.flatnonzero(np.bincount(flat, minlength=256)[1:]) + 1:
        voxels = np.flatnonzero(flat == value)
        if voxels.size > limit:
            keys = draws.random_raw(voxels.size)
            voxels = np.sort(voxels[np.argpartition(keys, limit)[:limit]])
        places = np.stack(np.unravel_index(voxels, label.shape), axis=1)
        rows.append(np.insert(places, 3, value, axis=1).astype(np.uint16))
    return np.concatenate(rows) if rows else np.empty((0, 4), np.uint16)
