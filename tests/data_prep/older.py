"""Stores that version 1 of the format left: the tiny task at a grid of (4, 5, 3).

Their checksums are part of the names of runs.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

CHECKSUMS = {"MRI": "f06e4265d537c470", "CT": "ede5e3556d6ecc29"}
GRID = (4, 5, 3)


def version_1_store(folder: Path, modality: str) -> Path:
    """Unpack the store of a modality below `folder`."""
    name = f"version_1_{modality.lower()}.tar.xz"
    with tarfile.open(Path(__file__).with_name(name)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"
