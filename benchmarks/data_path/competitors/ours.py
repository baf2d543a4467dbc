"""Ours: the Zarr store, with the node's cache of decoded cases and without it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.data_path.contract import Box, Competitor, Order
from benchmarks.data_path.source import TASK, Arrays
from mvl_dist.cache_folder import SHARED_MEMORY, join, leave
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import Batch, CaseDataset
from mvl_dist.loading import BatchLoader
from mvl_dist.node_cache import NodeCache
from mvl_dist.store import chunk_mapping, read_manifest

CACHE_BYTES = 4_000_000_000


class OursUncached(Competitor):
    """Every epoch decodes: what a case larger than the cache costs."""

    name = "ours, --cache-gb 0"
    says = "Zarr store (blosc-lz4, crc32c), decoded in every epoch"

    def reader(self) -> CaseReader:
        """How cases are read."""
        return CaseReader(self.source.store, TASK)

    def files(self) -> list[Path]:
        """Image and label at the grid alone."""
        cases = self.source.store / TASK / "cases"
        arrays = (cases / c / a for c in self.source.everything for a in ("image", "label"))
        return [path for array in arrays for path in sorted(array.rglob("*")) if path.is_file()]

    def read(self, case: str) -> Arrays:
        """Whole arrays."""
        reader = self.reader()
        return reader.array(case, "image"), reader.array(case, "label")

    def box(self, case: str, box: Box) -> Arrays:
        """The chunks that a box touches."""
        reader = self.reader()
        return reader.box(case, "image_spaced", box), reader.box(case, "label_spaced", box)

    def batches(self, order: Order, workers: int) -> Iterable[Batch]:
        """As a training does it."""
        manifest = read_manifest(self.source.store, TASK)
        cases = self.source.everything
        return BatchLoader(CaseDataset(self.reader(), manifest, cases, "all"), order, workers)


class Ours(OursUncached):
    """The first epoch decodes into the node's cache."""

    name = "ours"
    says = "the same, decoded once into the node's cache in /dev/shm"
    keeps = True

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.cache: NodeCache | None = None

    def fill(self) -> None:
        """An empty cache; the samples come into it as they are read."""
        folder = Path(tempfile.mkdtemp(prefix="mvl-bench-", dir=SHARED_MEMORY))
        join(folder)
        self.cache = NodeCache(folder, CACHE_BYTES)

    def forget(self) -> None:
        """Remove the cache, and let go of files, which could not be cold while they are mapped."""
        if self.cache:
            leave(self.cache.folder)
        self.cache = None
        chunk_mapping.forget()

    def reader(self) -> CaseReader:
        """Through the cache."""
        manifest = read_manifest(self.source.store, TASK)
        return super().reader().through(self.cache, manifest)
