"""Boxes out of a sharded array: the shard's index and the chunks that the box touches, no more.

Zarr reads the same arrays, but takes about 1 ms a chunk and fills with zeros what an index does not
list. Layout: https://zarr-specs.readthedocs.io, codec `sharding_indexed` version 1.0: the chunks,
then the index of (offset, bytes) pairs, then its crc32c.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mvl_dist.store.chunk_reading import CRC_BYTES, checked, decoded, place_for, require_codecs

if TYPE_CHECKING:
    import numpy.typing as npt

_MISSING = 2**64 - 1


class ShardFiles(Protocol):
    """Where the shards of an array lie; `key` is a file's name in the array's folder."""

    def tail(self, key: str, size: int) -> bytes:
        """The last `size` bytes of a shard."""

    def ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        """The bytes of each (offset, size), in this order."""


@dataclass(frozen=True)
class FolderShards:
    """Shards in the folder of an array."""

    folder: Path

    def tail(self, key: str, size: int) -> bytes:
        """As `ShardFiles.tail`."""
        with (self.folder / key).open("rb") as file:
            file.seek(-size, os.SEEK_END)
            return file.read(size)

    def ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        """As `ShardFiles.ranges`."""
        with (self.folder / key).open("rb") as file:
            for offset, size in ranges:
                file.seek(offset)
                yield file.read(size)


@dataclass(frozen=True)
class ShardedArray:
    """A sharded array as its zarr.json describes it."""

    shape: tuple[int, ...]
    dtype: str
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    separator: str

    def key(self, place: Sequence[int]) -> str:
        """Name of a shard's file."""
        return self.separator.join(map(str, ("c", *place)))


# A case's crops ask for it again and again.
@functools.lru_cache(maxsize=256)
def parse_sharded(document: bytes) -> ShardedArray:
    """Read a zarr.json.

    Raises:
        ValueError, KeyError, TypeError: not of an array that the store's writer made.
    """
    there: Mapping[str, Any] = json.loads(document)
    (codec,) = there["codecs"]
    layout = codec["configuration"]
    require_codecs(layout["codecs"])
    index = [each["name"] for each in layout["index_codecs"]]
    if (
        codec["name"] != "sharding_indexed"
        or layout.get("index_location", "end") != "end"
        or index != ["bytes", "crc32c"]
    ):
        raise ValueError("its zarr.json describes another encoding than this store's")
    return ShardedArray(
        shape=tuple(there["shape"]),
        dtype=there["data_type"],
        shard=tuple(there["chunk_grid"]["configuration"]["chunk_shape"]),
        chunk=tuple(layout["chunk_shape"]),
        separator=there["chunk_key_encoding"]["configuration"]["separator"],
    )


def read_sharded(
    document: bytes,
    files: ShardFiles,
    box: tuple[slice, slice, slice] | None = None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Read a box of an array, or all of it.

    Args:
        document: the array's zarr.json.
        box: slices of step 1 along the last three axes.
        out: what to read it into, of its shape and dtype; made by default.

    Returns:
        The array's values there, all its channels, C order.

    Raises:
        ValueError, KeyError, TypeError: the array is not as its writer made it, a checksum does not
            hold, an index lists no such chunk, or `out` does not suit the array.
        OSError: a shard is missing.
    """
    import numpy as np

    array = parse_sharded(document)
    leading = len(array.shape) - 3
    part = [slice(None)] * leading + list(box or [slice(None)] * 3)
    spans = [cut.indices(size) for cut, size in zip(part, array.shape, strict=True)]
    if any(step != 1 for _, _, step in spans):
        raise ValueError("a box has no steps")
    begin = [start for start, _, _ in spans]
    end = [max(start, stop) for start, stop, _ in spans]
    out = place_for(tuple(b - a for a, b in zip(begin, end, strict=True)), array.dtype, out)
    if out.size == 0:
        return out
    buffer = np.empty(array.chunk, array.dtype)
    touched: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for chunk in itertools.product(*map(_steps, begin, end, array.chunk)):
        shard = tuple(n * c // s for n, c, s in zip(chunk, array.chunk, array.shard, strict=True))
        touched.setdefault(shard, []).append(chunk)
    for shard, chunks in touched.items():
        key = array.key(shard)
        ranges = _ranges(array, files, key, chunks)
        for chunk, encoded in zip(chunks, files.ranges(key, ranges), strict=True):
            corner = [n * c for n, c in zip(chunk, array.chunk, strict=True)]
            low = [max(a, b) for a, b in zip(begin, corner, strict=True)]
            high = [min(a, b + c) for a, b, c in zip(end, corner, array.chunk, strict=True)]
            here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begin, strict=True))
            there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, corner, strict=True))
            out[here] = decoded(encoded, buffer, f"{key}: chunk")[there]
    return out


def _steps(begin: int, end: int, step: int) -> range:
    return range(begin // step, -(-end // step))


def _ranges(
    array: ShardedArray, files: ShardFiles, key: str, chunks: Sequence[tuple[int, ...]]
) -> list[tuple[int, int]]:
    """Where in its file each chunk lies."""
    counts = [s // c for s, c in zip(array.shard, array.chunk, strict=True)]
    size = 16 * math.prod(counts)
    raw = checked(files.tail(key, size + CRC_BYTES), f"{key}: index")
    if raw.nbytes != size:
        raise ValueError(f"{key}: is too short")
    index = raw.view("<u8").reshape(*counts, 2)
    found = [
        tuple(index[tuple(n % c for n, c in zip(chunk, counts, strict=True))].tolist())
        for chunk in chunks
    ]
    if (_MISSING, _MISSING) in found:
        raise ValueError(f"{key}: lacks a chunk")
    return found
