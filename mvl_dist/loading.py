"""Samples to batches in worker processes, and how long a step waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from mvl_dist.data import Batch, Item, RankBatches
from mvl_dist.errors import UserError


class BatchLoader:
    """Batches of an epoch after an epoch, by worker processes that outlive it.

    A worker's `UserError` arrives as it was raised: torch would wrap the worker's whole trace into
    its text. A worker that dies is one line too.
    """

    def __init__(self, dataset: Dataset[Batch], batches: RankBatches, workers: int) -> None:
        self.workers = workers
        # Spawned, not forked: Zarr runs an event loop in a thread, which a fork breaks.
        self.loader = DataLoader(
            _Carrying(dataset),
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers > 0 else None,
            collate_fn=_collate,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches, collated.

        Raises:
            UserError: a case that cannot be read, or a worker that died.
        """
        try:
            for batch in self.loader:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that loads data died ({' '.join(str(error).split())}): the machine, or "
                f"its shared memory (df -h /dev/shm), is likely full: lower --workers (now "
                f"{self.workers}) or ask for more memory"
            ) from error


class _Carrying(Dataset[Any]):
    """Hands a `UserError` on instead of raising it, so that it leaves the worker as it is."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitem__(self, item: Item) -> Batch | UserError:
        try:
            return self.dataset[item]
        except UserError as error:
            return error


def _collate(samples: Sequence[Batch | UserError]) -> Batch | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return default_collate(list(samples))


def timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Batches, each with the milliseconds that the training step waited for it."""
    asked = time.perf_counter()
    for batch in batches:
        yield batch, (time.perf_counter() - asked) * 1000
        asked = time.perf_counter()
