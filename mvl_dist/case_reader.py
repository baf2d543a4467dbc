"""Arrays of a task's cases, for whatever needs them: datasets, evaluation, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mvl_dist.node_cache import NodeCache
from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import Manifest, begin_reading, read_array, read_box

if TYPE_CHECKING:
    import numpy.typing as npt


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

    def ahead(self, cases: Sequence[str], arrays: Mapping[str, int | None]) -> None:
        """Say which arrays will be asked for whole; a store far away sends them meanwhile.

        Args:
            arrays: name -> `channels`, as `array` will be asked.
        """
        if isinstance(self.store, RemotePlace):
            for case in cases:
                away = [
                    array
                    for array, channels in arrays.items()
                    if self.cache is None or not self.cache.holds(self._key(case, array, channels))
                ]
                begin_reading(self.store, self.task, (case,), away)

    def array(self, case: str, array: str, channels: int | None = None) -> npt.NDArray[Any]:
        """One array whole, in C order; the caller must not write into it.

        Args:
            channels: how many of an image's channels, from the first; all by default. Only these
                are kept in the cache.

        Raises:
            UserError: as `mvl_dist.store.read_array`.
        """

        def load() -> npt.NDArray[Any]:
            return read_array(self.store, self.task, case, array)[:channels]

        if self.cache is None:
            return load()
        return self.cache.array(self._key(case, array, channels), load)

    def box(
        self,
        case: str,
        array: str,
        box: tuple[slice, slice, slice],
        channels: int | None = None,
    ) -> npt.NDArray[Any]:
        """A part of an array: `box` cuts D, H and W.

        With a cache the array is decoded whole, once; one that the cache could not hold is read
        in parts.

        Args:
            channels: as for `array`.

        Raises:
            UserError: as `mvl_dist.store.read_box`.
        """
        if self.cache is not None and self.manifest is not None:
            held = self.cache.find(self._key(case, array, channels))
            if held is None and self.cache.fits(self.manifest.nbytes(case, array, channels)):
                held = self.array(case, array, channels)
            if held is not None:
                return held[(..., *box)]
        return read_box(self.store, self.task, case, array, box)[:channels]

    def _key(self, case: str, array: str, channels: int | None) -> str:
        assert self.manifest is not None, "a cache needs the task's manifest"
        checksum = self.manifest.cases[case].arrays[array][:16]
        return f"{self.task}.{case}.{array}.{checksum}" + f".first{channels}" * bool(channels)
