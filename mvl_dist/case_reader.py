"""Arrays of a task's cases, for whatever needs them: datasets, evaluation, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mvl_dist.cached_file import MOST_OF_HOLLOW
from mvl_dist.errors import UserError
from mvl_dist.machine import on_own_disk
from mvl_dist.node_cache import NodeCache
from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import (
    SHARDED_ARRAYS,
    Manifest,
    begin_reading,
    read_array,
    read_box,
    read_in_place,
    stored_bytes,
)

if TYPE_CHECKING:
    import numpy.typing as npt

GRID_ARRAYS = ("image", "label")
# Cases that are on their way from a store far away while they are gone through one by one.
IN_TURN = 4
# What shrank so far is decoded in 0.4 ms (a 128^3 label) and copied out of the cache in 0.2, which
# to lay it there (0.9 ms) is not worth; but without its zeros it is (0.3 and 0.15).
SHRUNK = 8
# Decoded bytes of arrays at the task's spacing that are fetched whole before they are asked for;
# of a larger one, one at a time. A liver's CT is 250 MB.
BYTES_AHEAD = 600_000_000


@dataclass(frozen=True)
class CaseReader:
    """Reads the arrays of a task in a store; can be sent to a worker process.

    Attributes:
        cache: the node's decoded arrays; None reads the store each time.
        manifest: the task's, needed with a cache: a cached array is known by its checksum, so that
            a store that was replaced is never served from the cache.
    """

    store: StorePlace
    task: str
    cache: NodeCache | None = None
    manifest: Manifest | None = None

    def through(self, cache: NodeCache | None, manifest: Manifest) -> CaseReader:
        """The same reader with a cache."""
        return replace(self, cache=cache, manifest=manifest)

    def ahead(
        self, cases: Sequence[str], arrays: Mapping[str, int | None], parts: bool = False
    ) -> None:
        """Say which arrays will be asked for; a store far away sends them meanwhile.

        Of arrays at the task's spacing these are as many as `BYTES_AHEAD` has room for.

        Args:
            arrays: name -> `channels`, as `array` will be asked.
            parts: they will be asked for by `box`, which wants those whole that the cache can hold.
        """
        if not isinstance(self.store, RemotePlace):
            return
        whole, in_parts, room = [], [], BYTES_AHEAD
        for case in cases:
            for array, channels in arrays.items():
                if self._held(case, array, channels):
                    continue
                if array in SHARDED_ARRAYS and self.manifest:
                    kept, size = (self.manifest.nbytes(case, array, c) for c in (channels, None))
                    wanted = not parts or (self.cache is not None and self.cache.fits(kept))
                    if not wanted or (size > room and room < BYTES_AHEAD):
                        in_parts.append((case, array))
                        continue
                    room -= size
                whole.append((case, array))
        begin_reading(self.store, self.task, whole, in_parts)

    def in_turn(self, cases: Sequence[str], arrays: Mapping[str, int | None]) -> Iterator[str]:
        """Cases one by one; a store far away sends these arrays of the next ones meanwhile.

        Args:
            arrays: as for `ahead`.
        """
        for number, case in enumerate(cases):
            self.ahead(cases[number : number + IN_TURN], arrays)
            yield case

    def _held(self, case: str, array: str, channels: int | None) -> bool:
        return self.cache is not None and self.cache.holds(self._key(case, array, channels))

    def array(
        self,
        case: str,
        array: str,
        channels: int | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """One array whole, in C order; without `out` the caller must not write into it.

        Args:
            channels: how many of an image's channels, from the first; all by default. Only these
                are kept in the cache.
            out: what to put it into, and to return.

        Raises:
            UserError: as `mvl_dist.store.read_array`; the array is not of `out`'s shape and dtype.
        """

        def load() -> npt.NDArray[Any]:
            whole = out if channels is None else None
            return read_array(self.store, self.task, case, array, whole)[:channels]

        if self.cache is None:
            values = load()
        elif self.at_hand(case, array, channels):
            values = read_in_place(self.store, self.task, case, array, out)
        else:
            # Those at the task's spacing are cut from: they must be mapped.
            holes = array not in SHARDED_ARRAYS
            dense = not self._soon_decoded(case, array)
            values = self.cache.array(self._key(case, array, channels), load, out, holes, dense)
        return values if out is None else self._put(case, array, values, out)

    def at_hand(self, case: str, array: str, channels: int | None = None) -> bool:
        """Whether an array is read where it lies each time, for the cache would gain nothing.

        So it is on a disk of this node, whose page cache all processes share, if the array lies
        there as it is.

        Args:
            channels: as for `array`; a part of a file's would be read with the rest each time.
        """
        share = self._share_stored(case, array)
        return channels is None and share is not None and share >= 1

    def kept_bytes(self, case: str, array: str, channels: int | None = None) -> int:
        """Bytes that an array takes in a cache, at most; 0 where it is not kept."""
        assert self.manifest is not None, "sizes are the manifest's"
        if self.at_hand(case, array, channels):
            return 0
        size = self.manifest.nbytes(case, array, channels)
        return int(MOST_OF_HOLLOW * size) if self._soon_decoded(case, array) else size

    def _soon_decoded(self, case: str, array: str) -> bool:
        """Whether an array lies on a disk of this node and shrank to next to nothing."""
        share = self._share_stored(case, array)
        return share is not None and share <= 1 / SHRUNK

    def _share_stored(self, case: str, array: str) -> float | None:
        """Bytes of the file of an array on the grid over its decoded ones; None if that does not
        lie on a disk of this node.
        """
        if isinstance(self.store, RemotePlace) or array not in GRID_ARRAYS:
            return None
        if self.manifest is None or not on_own_disk(self.store):
            return None
        stored = stored_bytes(self.store, self.task, case, array)
        return stored / self.manifest.nbytes(case, array)

    def box(
        self,
        case: str,
        array: str,
        box: tuple[slice, slice, slice],
        channels: int | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """A part of an array: `box` cuts D, H and W.

        With a cache the array is decoded whole, once; one that the cache could not hold is read
        in parts.

        Args:
            channels, out: as for `array`.

        Raises:
            UserError: as `mvl_dist.store.read_box`; the part is not of `out`'s shape and dtype.
        """
        if self.cache is not None and self.manifest is not None:
            holes = array not in SHARDED_ARRAYS
            held = self.cache.find(self._key(case, array, channels), holes=holes)
            if held is None and self.cache.fits(self.manifest.nbytes(case, array, channels)):
                held = self.array(case, array, channels)
            if held is not None:
                values = held[(..., *box)]
                return values if out is None else self._put(case, array, values, out)
        whole = out if channels is None else None
        values = read_box(self.store, self.task, case, array, box, whole)[:channels]
        return values if out is None else self._put(case, array, values, out)

    def _put(
        self, case: str, array: str, values: npt.NDArray[Any], out: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Copy an array into its place, unless it lies there."""
        if (values.shape, values.dtype) != (out.shape, out.dtype):
            # numpy would stretch a single channel over all of them.
            raise UserError(
                f"{self.store / self.task / 'cases' / case / array}: gives {values.dtype} "
                f"{values.shape}, by the manifest it should be {out.dtype} {out.shape}: run 'mvl "
                f"verify --store {self.store}'; was the case copied from another store?"
            )
        if not np.may_share_memory(values, out):
            out[...] = values
        return out

    def _key(self, case: str, array: str, channels: int | None) -> str:
        assert self.manifest is not None, "a cache needs the task's manifest"
        checksum = self.manifest.cases[case].arrays[array][:16]
        return f"{self.task}.{case}.{array}.{checksum}" + f".first{channels}" * bool(channels)
