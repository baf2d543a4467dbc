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

# Arrays on the task's grid: the zarr.json of one case's says what those of all others are.
ALIKE = ("image", "label")
# Of this process: zarr.json of the arrays read so far, about a kilobyte each, by `_kind`, and the
# indexes of their shards, up to 8 kB each. Patches of a case ask for them again and again.
_DOCUMENTS: dict[RemotePlace, bytes] = {}
_TAILS: dict[tuple[RemotePlace, int], bytes] = {}
# Kinds whose zarr.json is under way for the first case that was asked for.
_ASKED: set[RemotePlace] = set()


def documents_of(array: RemotePlace) -> list[RemotePlace]:
    """An array's zarr.json to ask for early, or nothing where that of its kind is known or asked
    for.
    """
    kind = _kind(array)
    if kind in _DOCUMENTS or kind in _ASKED:
        return []
    if kind != array:
        _ASKED.add(kind)
    return [array / DOCUMENT]


def forget() -> None:
    """Be as a process that has read nothing yet."""
    for known in (_DOCUMENTS, _TAILS, _ASKED):
        known.clear()


def read(
    place: RemotePlace,
    sharded: bool,
    box: tuple[slice, slice, slice] | None,
    out: npt.NDArray[Any] | None = None,
    own: bool = False,
) -> npt.NDArray[Any]:
    """An array, or a box of its last three axes; `out` as for `reading.read_box`.

    Args:
        own: by its own zarr.json, although that of another case says the same.

    Raises:
        FileNotFoundError: a file of it is missing.
        UserError: as `objects.fetch`.
        Exception: a file of it is damaged.
    """
    if sharded:
        if place not in _DOCUMENTS:
            _DOCUMENTS[place] = bytes(objects.taken(place / DOCUMENT))
        files = WholeShards(place) if box is None else FarShards(place)
        return read_sharded(_DOCUMENTS[place], files, box, out)
    values = _read_chunk(place, out if box is None else None, own)
    return values if box is None else values[(..., *box)]


def _read_chunk(place: RemotePlace, out: npt.NDArray[Any] | None, own: bool) -> npt.NDArray[Any]:
    import numpy as np

    kind, content = _kind(place), dict[str, Any]()

    def fetched(name: str) -> Any:
        if name not in content:
            content[name] = np.frombuffer(objects.taken(place / name), np.uint8)
        return content[name]

    if kind in _DOCUMENTS and not own:
        try:
            return read_chunk(_DOCUMENTS[kind], fetched, out)
        except ValueError:
            # Damaged, or not as the others are: its own zarr.json is to say which.
            if kind == place:
                raise
    document = bytes(objects.taken(place / DOCUMENT))
    values = read_chunk(document, fetched, out)
    _DOCUMENTS.setdefault(kind, document)
    return values


def _kind(array: RemotePlace) -> RemotePlace:
    """What an array shares its zarr.json with: this array of all cases, or itself."""
    cases, _, name = array.key.rpartition("/")
    if name not in ALIKE:
        return array
    return RemotePlace(array.root, f"{cases.rpartition('/')[0]}/*/{name}")


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
    content: Any = b""

    def tail(self, key: str, size: int) -> bytes:
        """The last bytes of a shard."""
        import numpy as np

        if key != self.key:
            self.key = key
            self.content = np.frombuffer(objects.taken(self.place / key), np.uint8)
        return bytes(self.content[-size:])

    def ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Iterable[Any]:
        """The bytes of each (offset, size) of the shard whose tail was asked for."""
        for offset, size in ranges:
            yield self.content[offset : offset + size]
