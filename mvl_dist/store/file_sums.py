"""Size and CRC-32 of an array's files, by which they are verified without decoding them.

The crc32c that closes each chunk would not do: it names no file, so two files in each other's place
hold. CRC-32 is gzip's and zlib's; isal takes 16 GB/s of a core, thirty times blosc's and sha256's
rate together. Source: RFC 1952, section 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from isal import isal_zlib

from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store.listing import read_bytes

# Name of a file below its array's folder -> {"bytes": ..., "crc32": eight hexadecimal digits}.
FileSums = Mapping[str, Mapping[str, Any]]

# What is read and summed at once, while a core's own cache holds it.
_PIECE = 2**19


def write_summed(path: Path, parts: Iterable[bytes]) -> dict[str, Any]:
    """Write a new file; returns its sum.

    Raises:
        OSError: the disk is full or not writable.
    """
    with path.open("wb") as file:
        return _sum(_written(file, parts))


def sum_of(place: StorePlace) -> dict[str, Any]:
    """Sum of a file as it lies there.

    Raises:
        OSError: there is none, or it cannot be read.
        UserError: an object store that does not answer, or refuses.
    """
    if isinstance(place, RemotePlace):
        return _sum([read_bytes(place)])
    with place.open("rb", buffering=0) as file:
        return _sum(_pieces(file))


def _sum(parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    size = crc = 0
    for part in parts:
        size += len(part)
        crc = isal_zlib.crc32(part, crc)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def _written(file: Any, parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        file.write(part)
        yield part


def _pieces(file: Any) -> Iterator[memoryview]:
    piece = memoryview(bytearray(_PIECE))
    while size := file.readinto(piece):
        yield piece[:size]
