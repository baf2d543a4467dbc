"""An array that is one chunk, out of its file's bytes.

Zarr reads the same arrays, but takes 3 ms more for each, and fills a lost one with zeros: a lost
label would read as empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

CRC_BYTES = 4


def read_chunk(document: bytes, fetch: Callable[[str], bytes]) -> npt.NDArray[Any]:
    """Read an array.

    Args:
        document: its zarr.json.
        fetch: name of a file in the array's folder -> content.

    Returns:
        All its values, C order.

    Raises:
        ValueError, KeyError, TypeError: the array is not as its writer made it, or the checksum
            does not hold.
        OSError: its chunk is missing.
    """
    import numpy as np

    there: Mapping[str, Any] = json.loads(document)
    require_codecs(there["codecs"])
    shape = tuple(there["shape"])
    out = np.empty(shape, there["data_type"])
    if out.size == 0:  # a list of no voxels has no chunk
        return out
    chunk = tuple(there["chunk_grid"]["configuration"]["chunk_shape"])
    if chunk != shape:
        raise ValueError(f"is not one chunk: {chunk} of {shape}")
    separator = there["chunk_key_encoding"]["configuration"]["separator"]
    key = separator.join(("c", *"0" * len(shape)))
    decode(fetch(key), out, "its chunk")
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

    content = checked(data, what)
    # blosc's header has the decoded size; less than asked for would leave the rest as it was.
    if int.from_bytes(content[4:8], "little") != out.nbytes:
        raise ValueError(f"{what}: is not of the size that its zarr.json says")
    blosc.decompress(content, out)


def checked(data: bytes, what: str) -> bytes:
    """What a crc32c of four bytes closes.

    Raises:
        ValueError: the checksum does not hold.
    """
    import google_crc32c

    content, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if google_crc32c.value(content) != int.from_bytes(crc, "little"):
        raise ValueError(f"{what}: the crc32c does not hold")
    return content
