"""What bounds the way from the store to batches on this machine: `mvl doctor --data`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch.utils.data import Dataset

from mvl_dist.batch_buffers import BatchBuffers
from mvl_dist.cache_folder import choose, join, leave
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import Batch, CaseDataset, Item, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.loading import BatchLoader, fill
from mvl_dist.node_cache import NodeCache
from mvl_dist.place import StorePlace
from mvl_dist.run_cache import array_sizes
from mvl_dist.store import Manifest, read_files, read_manifest, task_names

ARRAYS = ("image", "label")
# Enough for a median; a loader's first batches carry the start of its workers.
CASES = 24
BATCH = 4
T = TypeVar("T")


@dataclass(frozen=True)
class DataSpeed:
    """Medians of what a sample takes in one process, and the rate of a loader's worker processes.

    Attributes:
        read_ms: bringing a case's compressed files into memory, from disk or from the system's own
            cache as they lay.
        decode_ms: from memory into the batch, with the crc32c.
        mb_per_case: compressed size, mean.
        first_batch_s: from asking a fresh loader to its first batch.
        samples_per_s: of the loader after its first batch, from the store: a first epoch.
        cached_per_s: the same from the node's cache: every epoch after it.
    """

    read_ms: float
    decode_ms: float
    mb_per_case: float
    workers: int
    first_batch_s: float
    samples_per_s: float
    cached_per_s: float

    def lost_ms(self, cores: int) -> float:
        """What a sample of the loader takes beyond its parts: handing it over, and other work."""
        at_once = min(max(self.workers, 1), cores)
        return at_once * 1000 / self.samples_per_s - self.read_ms - self.decode_ms

    def verdict(self, cores: int) -> str:
        """The largest part of a sample's time, and what lessens it."""
        parts = {
            "reading files": self.read_ms,
            "decoding": self.decode_ms,
            "handing batches over": self.lost_ms(cores),
        }
        largest = max(parts, key=lambda name: parts[name])
        if largest == "reading files":
            return "reading files: a faster or nearer disk (node-local scratch) for --store"
        if largest == "handing batches over":
            copies = "copies between processes" if self.workers else "the loader's own Python"
            return f"{copies}, or other work on these cores (see top)"
        if self.workers < cores:
            return f"{largest}: more --workers (there are {cores} cores)"
        return f"{largest}: every one of the {cores} cores has a worker; more cores"


def report(store: StorePlace, task: str, workers: int) -> list[str]:
    """Lines about a task; the store's only one if none is given.

    Raises:
        UserError: no such store or task, several tasks and none named, a negative number of
            workers, or an unreadable case.
    """
    if workers < 0:
        raise UserError(f"--workers {workers}: must not be negative")
    held = () if task else task_names(store)
    if len(held) > 1:
        raise UserError(f"--data: {store} holds {', '.join(held)}: choose with --task")
    manifest = read_manifest(store, task or next(iter(held), "Task01"))
    reader = CaseReader(store, manifest.task.name, manifest=manifest)
    sizes = array_sizes(reader, manifest, manifest.cases, "all")
    place = choose(str(store.resolve()), "auto", sizes)
    assert place is not None
    join(place.folder)
    cache = NodeCache(place.folder, place.capacity)
    cached_bytes = cache.held()  # by trainings that run now
    speed = measure(store, manifest, workers, cache)
    leave(place.folder)
    cores = len(os.sched_getaffinity(0))
    loader = f"{workers} worker{'s' * (workers > 1)}" if workers else "no workers"
    return [
        f"{manifest.task.name}, {len(manifest.cases)} cases of {'x'.join(map(str, manifest.grid))}",
        f"  one process    {speed.read_ms:.2f} ms reading files ({speed.mb_per_case:.2f} MB), "
        f"{speed.decode_ms:.2f} ms decoding, a case",
        f"  {loader:13}  {speed.samples_per_s:.0f} samples/s from the store, "
        f"{max(speed.lost_ms(cores), 0):.2f} ms a case beyond these parts; first batch after "
        f"{speed.first_batch_s:.1f} s",
        f"  cache          {speed.cached_per_s:.0f} samples/s from the second epoch on; it wants "
        f"{sum(sizes) / 1e9:.3g} GB, {place.folder} holds {cached_bytes / 1e9:.3g} GB of at "
        f"most {place.capacity / 1e9:.3g} GB",
        f"  bounded by     {speed.verdict(cores)}",
        "  in a training  MLflow has each step's data_wait_ms and each epoch's data_wait_share",
    ]


def measure(store: StorePlace, manifest: Manifest, workers: int, cache: NodeCache) -> DataSpeed:
    """Time a task's cases as they lie: files that the system still holds in memory read faster.

    Raises:
        UserError: an array that cannot be read.
    """
    task = manifest.task.name
    cases = sorted(manifest.cases)[:CASES]
    reader = CaseReader(store, task)
    dataset = CaseDataset(reader, manifest, cases, "all")
    cached = CaseDataset(reader.through(cache, manifest), manifest, cases, "all")
    place = BatchBuffers(dataset.layout, 1, slots=1).batch(0)
    fill(place, dataset, [Item(0)])  # its memory is there then, as in a training after two batches
    reads, decodes, sizes = [], [], []
    for index, case in enumerate(cases):
        files = partial(read_files, store, task, case, ARRAYS)
        cold_s, size = _timed(files)
        # What follows finds the files in the system's cache: only that may be taken off from it.
        warm_s, _ = _timed(files)
        arrays_s, _ = _timed(partial(fill, place, dataset, [Item(index)]))
        reads.append(cold_s)
        decodes.append(max(arrays_s - warm_s, 0))
        sizes.append(size)
    first_s, rate = _loader_speed(dataset, workers)
    for index in range(len(cases)):
        cached[Item(index)]
    _, cached_rate = _loader_speed(cached, workers)
    return DataSpeed(
        read_ms=statistics.median(reads) * 1000,
        decode_ms=statistics.median(decodes) * 1000,
        mb_per_case=statistics.mean(sizes) / 1e6,
        workers=workers,
        first_batch_s=first_s,
        samples_per_s=rate,
        cached_per_s=cached_rate,
    )


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _loader_speed(dataset: CaseDataset, workers: int) -> tuple[float, float]:
    """Seconds to a fresh loader's first batch, and its samples a second when all workers run."""
    starting = max(workers, 1)
    passes = 1 + max(2, -(-4 * CASES * starting // len(dataset)))
    order = RankBatches(len(dataset) * passes, BATCH, 0, 1, seed=0)
    loader = BatchLoader(_Repeated(dataset), order, workers)  # named: its end is not timed
    batches = iter(loader)
    first_s, _ = _timed(lambda: len(next(batches)["case"]))
    # Each worker's first batch carries its start, and each has met no case before its first pass.
    for _ in range(starting - 1 + len(order) // passes):
        next(batches)
    rest_s, samples = _timed(lambda: sum(len(batch["case"]) for batch in batches))
    return first_s, samples / rest_s


class _Repeated(Dataset[Batch]):
    """The same cases over and over, so that a small task fills a measurement."""

    def __init__(self, dataset: CaseDataset) -> None:
        self.dataset = dataset
        self.layout = dataset.layout

    def ahead(self, items: Sequence[Item]) -> None:
        self.dataset.ahead([self._repeated(item) for item in items])

    def put(self, item: Item, place: Mapping[str, torch.Tensor]) -> Batch:
        return self.dataset.put(self._repeated(item), place)

    def __getitem__(self, item: Item) -> Batch:
        return self.dataset[self._repeated(item)]

    def _repeated(self, item: Item) -> Item:
        return item._replace(case=item.case % len(self.dataset))
