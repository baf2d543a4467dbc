"""Arrays of a store under s3://, gs:// or http(s)://, read in few requests and round trips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvl_dist.place import RemotePlace
from mvl_dist.store import objects
from mvl_dist.store.chunk_reading import read_chunk
from mvl_dist.store.format import DOCUMENT
from mvl_dist.store.shard_reading import read_sharded

if TYPE_CHECKING:
    import numpy.typing as npt

# Of this process: zarr.json of the arrays read so far, about a kilobyte each, and the indexes of
# their shards, up to 8 kB each. Patches of a case ask for them again and again.
_DOCUMENTS: dict[RemotePlace, bytes] = {}
_TAILS: dict[tuple[RemotePlace, int], bytes] = {}


def documents_of(array: RemotePlace) -> list[RemotePlace]:
    """An array's zarr.json, or nothing where this process has read it."""
    document = array / DOCUMENT
    return [] if document in _DOCUMENTS else [document]


def read(
    place: RemotePlace,
    sharded: bool,
    box: tuple[slice, slice, slice] | None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """An array, or a box of its last three axes; `out` as for `reading.read_box`.

    Raises:
        FileNotFoundError: a file of it is missing.
        UserError: as `objects.fetch`.
        Exception: a file of it is damaged.
    """
    document = place / DOCUMENT
    if document not in _DOCUMENTS:
        _DOCUMENTS[document] = objects.taken(document)
    if sharded:
        files = WholeShards(place) if box is None else FarShards(place)
        return read_sharded(_DOCUMENTS[document], files, box, out)
    whole = out if box is None else None
    values = read_chunk(_DOCUMENTS[document], lambda name: objects.taken(place / name), whole)
    return values if box is None else values[(..., *box)]


@dataclass(frozen=True)
class FarShards:
    """Shards of an array far away: `mvl_dist.store.shard_reading.ShardFiles`."""

    place: RemotePlace

    def tail(self, key: str, size: int) -> bytes:
        """The last bytes of a shard, asked for once a process."""
        shard = self.place / key
        if (shard, size) not in _TAILS:
            _TAILS[shard, size] = objects.fetch_tail(shard, size)
        return _TAILS[shard, size]

    def ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        """The bytes of each (offset, size): neighbours in one request, all requests at once."""
        return objects.fetch_ranges(self.place / key, ranges)


@dataclass
class WholeShards:
    """The same for an array read whole: a file each, which needs no server that hands out parts."""

    place: RemotePlace
    key: str = ""
    content: bytes = b""

    def tail(self, key: str, size: int) -> bytes:
        """The last bytes of a shard."""
        if key != self.key:
            self.key, self.content = key, objects.fetch(self.place / key)
        return self.content[-size:]

    def ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        """The bytes of each (offset, size) of the shard whose tail was asked for."""
        for offset, size in ranges:
            yield self.content[offset : offset + size]
