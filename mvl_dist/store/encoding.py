"""How the store's writer encodes a chunk: blosc, closed by a crc32c."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvl_dist.store.chunk_reading import CRC_BYTES

if TYPE_CHECKING:
    import numpy.typing as npt

# As zarr.json names them, in the order of numcodecs' numbers for them.
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


def blosc_settings(itemsize: int) -> dict[str, Any]:
    """Blosc's settings for values of so many bytes, as they stand in a zarr.json."""
    return {
        "typesize": itemsize,
        "cname": "lz4",
        "clevel": 5,
        "shuffle": "shuffle",
        "blocksize": 0,
    }


def encode(values: npt.NDArray[Any]) -> tuple[bytes, bytes]:
    """A chunk, C order, compressed; and the checksum that closes it."""
    from numcodecs import blosc

    settings = blosc_settings(values.dtype.itemsize)
    shuffle = _SHUFFLES.index(settings["shuffle"])
    data = blosc.compress(
        values, settings["cname"].encode(), settings["clevel"], shuffle, settings["blocksize"]
    )
    return data, checksum(data)


def checksum(data: bytes) -> bytes:
    """The crc32c that closes a chunk or an index."""
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
