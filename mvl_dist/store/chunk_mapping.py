"""Chunks that are stored as they are, mapped out of the page cache.

A file that somebody cuts short in place while it is mapped would end the process; the store's
writer renames whole cases and never does so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.files import mapped
from mvl_dist.store.chunk_reading import parse_chunked, stored_values
from mvl_dist.store.format import DOCUMENT

if TYPE_CHECKING:
    import numpy.typing as npt

Version = tuple[int, int, int]
# Of this process: files that were asked for, and which file each was then; those asked for again,
# with their values (None: compressed).
_ASKED: dict[str, Version] = {}
_MAPPED: dict[str, npt.NDArray[Any] | None] = {}


def mapped_again(array: Path, file: str) -> npt.NDArray[Any] | None:
    """Values of an array of one chunk that was asked for before and is stored as it is, else None.

    They are mapped copy-on-write: what is written into them stays in this process.

    Args:
        array: its folder.
        file: its chunk's, below that.

    Raises:
        ValueError, KeyError, TypeError: the array is not as its writer made it, or the checksum
            does not hold.
        OSError: a file of it is missing.
    """
    path = f"{array}/{file}"
    status = os.stat(path)  # noqa: PTH116 - a Path costs more than the call
    version = status.st_ino, status.st_mtime_ns, status.st_size
    if _ASKED.get(path) != version:
        _ASKED[path] = version
        _MAPPED.pop(path, None)
        return None
    if path not in _MAPPED:
        _MAPPED[path] = _mapped(array, path)
    return _MAPPED[path]


def forget() -> None:
    """Be as a process that has read nothing yet: what is mapped stays in the page cache."""
    _ASKED.clear()
    _MAPPED.clear()


def _mapped(array: Path, path: str) -> npt.NDArray[Any] | None:
    layout = parse_chunked((array / DOCUMENT).read_bytes())
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        return stored_values(mapped(file.fileno()), layout, "its chunk")
