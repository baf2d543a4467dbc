"""What bounds the way from the store to batches on this machine: `mvl doctor --data`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch.utils.data import Dataset

from mvl_dist.data import Batch, CaseDataset, RankBatches, make_loader
from mvl_dist.store import Manifest, read_array

ARRAYS = ("image", "label")
# Enough for a mean; a loader's first batches carry the start of its workers.
CASES = 24
BATCH = 4
T = TypeVar("T")


@dataclass(frozen=True)
class DataSpeed:
    """Milliseconds a case in one process, and the rate of a loader's worker processes.

    Attributes:
        read_ms: bringing the compressed files into memory.
        decode_ms: from there to arrays, with Zarr's own time and the crc32c.
        mask_ms: the rest of a sample: tensors and one mask a region.
        mb_per_case: compressed size.
        first_batch_s: from asking a fresh loader to its first batch.
        samples_per_s: of the loader after its first batch.
    """

    read_ms: float
    decode_ms: float
    mask_ms: float
    mb_per_case: float
    workers: int
    first_batch_s: float
    samples_per_s: float

    def verdict(self, cores: int) -> str:
        """The largest part of a sample's time, and what lessens it."""
        parts = {
            "reading files": self.read_ms,
            "decoding": self.decode_ms,
            "making masks": self.mask_ms,
        }
        largest = max(parts, key=lambda name: parts[name])
        if largest == "reading files":
            return "reading files: a faster or nearer disk (node-local scratch) for --store"
        if self.workers < cores:
            return f"{largest}: more --workers (there are {cores} cores)"
        return f"{largest}: every one of the {cores} cores has a worker; more cores"


def measure(store: Path, manifest: Manifest, workers: int) -> DataSpeed:
    """Time a task's cases as they lie: files that the system still holds in memory read faster.

    Raises:
        UserError: an array that cannot be read.
    """
    task = manifest.task.name
    cases = sorted(manifest.cases)[:CASES]
    folders = [store / task / "cases" / case for case in cases]
    files = [
        f for folder in folders for a in ARRAYS for f in (folder / a).rglob("*") if f.is_file()
    ]
    read_array(store, task, cases[0], "label")  # imports Zarr, which is no case's time
    read_s, sizes = _timed(lambda: [len(file.read_bytes()) for file in files])
    arrays_s, _ = _timed(lambda: [read_array(store, task, c, a) for c in cases for a in ARRAYS])
    dataset = CaseDataset(store, manifest, cases, "all", "labels")
    whole_s, _ = _timed(lambda: [dataset[index, 0] for index in range(len(cases))])
    first_s, rate = _loader_speed(dataset, workers)
    ms = 1000 / len(cases)
    return DataSpeed(
        read_ms=read_s * ms,
        decode_ms=max(arrays_s - read_s, 0.0) * ms,
        mask_ms=max(whole_s - arrays_s, 0.0) * ms,
        mb_per_case=sum(sizes) / len(cases) / 1e6,
        workers=workers,
        first_batch_s=first_s,
        samples_per_s=rate,
    )


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _loader_speed(dataset: CaseDataset, workers: int) -> tuple[float, float]:
    """Seconds to a fresh loader's first batch, and its samples a second from then on."""
    passes = max(2, -(-CASES * max(workers, 1) // len(dataset)))
    order = RankBatches(len(dataset) * passes, BATCH, 0, 1, seed=0)
    batches = iter(make_loader(_Repeated(dataset), order, workers))
    first_s, _ = _timed(lambda: next(batches))
    rest_s, samples = _timed(lambda: [len(batch["case"]) for batch in batches])
    return first_s, sum(samples) / rest_s


class _Repeated(Dataset[Batch]):
    """The same cases over and over, so that a small task fills a measurement."""

    def __init__(self, dataset: CaseDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        index, position = item
        return self.dataset[index % len(self.dataset), position]


def lines(speed: DataSpeed) -> list[str]:
    """The report of one task."""
    cores = len(os.sched_getaffinity(0))
    return [
        f"one process     {speed.read_ms:.2f} ms reading files ({speed.mb_per_case:.2f} MB), "
        f"{speed.decode_ms:.2f} ms decoding, {speed.mask_ms:.2f} ms masks, a case",
        f"{speed.workers} workers       {speed.samples_per_s:.0f} samples/s; first batch after "
        f"{speed.first_batch_s:.1f} s",
        f"bounded by      {speed.verdict(cores)}",
        "in a training   MLflow has each step's data_wait_ms and each epoch's data_wait_share",
    ]
