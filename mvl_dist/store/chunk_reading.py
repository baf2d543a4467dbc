"""An array that is one chunk, out of its file's bytes.

Zarr reads the same arrays, but takes 3 ms more for each, and fills a lost one with zeros: a lost
label would read as empty.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CRC_BYTES = 4
# Bytes before the content, and the flag in the third of them which says that it is not compressed:
# blosc 1's format, README_CHUNK_FORMAT.rst of c-blosc.
_BLOSC_HEADER = 16
_STORED = 0x02
# Read and checked at once, while a core's own cache holds it: the checksum of 4 MB takes 0.2 ms so
# and 0.5 ms otherwise.
_PIECE = 2**19


@dataclass(frozen=True)
class ChunkedArray:
    """An array of one chunk as its zarr.json describes it; `file` is its name in the folder."""

    shape: tuple[int, ...]
    dtype: str
    file: str


# The arrays of one name and shape have the same document in every case.
@functools.lru_cache(maxsize=256)
def parse_chunked(document: bytes) -> ChunkedArray:
    """Read a zarr.json.

    Raises:
        ValueError, KeyError, TypeError: not of an array that the store's writer made.
    """
    there: Mapping[str, Any] = json.loads(document)
    require_codecs(there["codecs"])
    shape = tuple(there["shape"])
    chunk = tuple(there["chunk_grid"]["configuration"]["chunk_shape"])
    if chunk != shape and 0 not in shape:
        raise ValueError(f"is not one chunk: {chunk} of {shape}")
    separator = there["chunk_key_encoding"]["configuration"]["separator"]
    return ChunkedArray(shape, there["data_type"], separator.join(("c", *"0" * len(shape))))


def read_chunk(
    document: bytes, fetch: Callable[[str], bytes], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Read an array.

    Args:
        document: its zarr.json.
        fetch: name of a file in the array's folder -> content.
        out: what to read it into, of its shape and dtype and in C order; made by default.

    Returns:
        All its values, C order.

    Raises:
        ValueError, KeyError, TypeError: the array is not as its writer made it, the checksum does
            not hold, or `out` does not suit it.
        OSError: its chunk is missing.
    """
    array = parse_chunked(document)
    out = place_for(array.shape, array.dtype, out)
    if out.size > 0:  # a list of no voxels has no chunk
        decode(fetch(array.file), out, "its chunk")
    return out


def read_chunk_file(
    document: bytes, folder: Path, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """`read_chunk` of an array in a folder.

    A chunk that blosc stored as it is goes from the page cache to its place by one copy.
    """
    array = parse_chunked(document)
    out = place_for(array.shape, array.dtype, out)
    if out.size == 0:
        return out
    with (folder / array.file).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size == _BLOSC_HEADER + out.nbytes + CRC_BYTES and out.flags.c_contiguous:
            header = file.read(_BLOSC_HEADER)
            if header[2] & _STORED:
                _read_stored(file, header, out)
                return out
            file.seek(0)
        decode(file.read(), out, "its chunk")
    return out


def _read_stored(file: io.FileIO, header: bytes, out: npt.NDArray[Any]) -> None:
    """Read what follows a chunk's header straight into the array."""
    import google_crc32c
    import numpy as np

    values: Any = out.reshape(-1).view(np.uint8)
    crc = google_crc32c.value(header)
    for start in range(0, out.nbytes, _PIECE):
        piece = values[start : start + _PIECE]
        if file.readinto(piece) != piece.nbytes:
            raise ValueError("its chunk: is too short")
        crc = google_crc32c.extend(crc, piece)
    if crc != int.from_bytes(file.read(CRC_BYTES), "little"):
        raise ValueError("its chunk: the crc32c does not hold")
    if int.from_bytes(header[4:8], "little") != out.nbytes:
        raise ValueError("its chunk: is not of the size that its zarr.json says")


def place_for(shape: tuple[int, ...], dtype: str, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """What to read values into: `out`, or a new array.

    Raises:
        ValueError: `out` is of another shape or dtype.
    """
    import numpy as np

    if out is None:
        return np.empty(shape, dtype)
    if (out.shape, out.dtype) != (shape, np.dtype(dtype)):
        raise ValueError(f"is {dtype} {shape}, asked for {out.dtype} {out.shape}")
    return out


def require_codecs(codecs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a chunk that is not encoded as the store's writer does.

    Raises:
        ValueError: it is not.
    """
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    if [codec["name"] for codec in codecs] != ["bytes", "blosc", "crc32c"] or endian != "little":
        raise ValueError("its zarr.json describes another encoding than this store's")


def decode(data: bytes, out: npt.NDArray[Any], what: str) -> None:
    """Fill an array from a chunk's bytes.

    Raises:
        ValueError: the checksum does not hold, or the chunk is not as large as the array.
    """
    from numcodecs import blosc

    blosc.decompress(content_of(data, out.nbytes, what), out)


def decoded(data: bytes, buffer: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """A chunk's values, in `buffer`, which has their shape and dtype; a view of `data` where blosc
    found nothing to compress.

    Raises:
        ValueError: as `decode`.
    """
    from numcodecs import blosc

    content = content_of(data, buffer.nbytes, what)
    if content[2] & _STORED:
        return _stored(content, buffer.dtype, buffer.shape)
    blosc.decompress(content, buffer)
    return buffer


def stored_values(data: Any, array: ChunkedArray, what: str) -> npt.NDArray[Any] | None:
    """The values of a chunk that blosc stored as it is, a view; None of a compressed one.

    Args:
        data: the chunk, anything that has a buffer.

    Raises:
        ValueError: as `decode`.
    """
    import numpy as np

    dtype = np.dtype(array.dtype)
    content = content_of(data, math.prod(array.shape) * dtype.itemsize, what)
    return _stored(content, dtype, array.shape) if content[2] & _STORED else None


def _stored(
    content: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    return content[_BLOSC_HEADER:].view(dtype).reshape(shape)


def content_of(data: bytes, nbytes: int, what: str) -> npt.NDArray[np.uint8]:
    """What blosc made of a chunk, a view.

    Args:
        nbytes: of the chunk once it is decoded.

    Raises:
        ValueError: the checksum does not hold, or the chunk is of another size.
    """
    content = checked(data, what)
    # blosc's header has the decoded size; less than asked for would leave the rest as it was.
    if int.from_bytes(content[4:8].tobytes(), "little") != nbytes:
        raise ValueError(f"{what}: is not of the size that its zarr.json says")
    return content


def checked(data: bytes, what: str) -> npt.NDArray[np.uint8]:
    """What a crc32c of four bytes closes, a view.

    Raises:
        ValueError: the checksum does not hold.
    """
    import google_crc32c
    import numpy as np

    content = np.frombuffer(data, np.uint8)[: max(len(data) - CRC_BYTES, 0)]
    if google_crc32c.value(content) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise ValueError(f"{what}: the crc32c does not hold")
    return content
