"""Samples to batches in worker processes, and how long a step waits for them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mvl_dist.batch_buffers import BatchBuffers
from mvl_dist.data import Batch, Item, Layout, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.parallel import worker_environment

# Batches that each worker is asked for ahead of need.
AHEAD = 2
# Samples that each worker knows of at least, those of its batch among them: what a store far away
# is to send meanwhile. In batches of one, the next batch alone would leave it waiting.
IN_SIGHT = 16
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Samples(Protocol):
    """What a loader reads: a sample is a dict, and all its tensors are in the layout."""

    @property
    def layout(self) -> Layout:
        """Shape and dtype of a sample's tensors, by name; the rest of a sample is listed."""

    def __getitem__(self, item: Item) -> Batch:
        """A sample."""


@runtime_checkable
class PutsSamples(Protocol):
    """A dataset that can read a sample into its place in a batch, which saves a copy."""

    def put(self, item: Item, place: Mapping[str, torch.Tensor]) -> Batch:
        """Fill the tensors of a sample's layout; return the rest of the sample."""


@runtime_checkable
class LooksAhead(Protocol):
    """A dataset that is glad to know early what it will be asked for."""

    def ahead(self, items: Sequence[Item]) -> None:
        """Items that will be asked for soon, in this process."""


class BatchLoader:
    """Batches of an epoch after an epoch, by worker processes that outlive it.

    A batch's memory is filled again when the next but one is asked for: whoever needs a batch for
    longer clones it. A worker's `UserError` arrives as it was raised: torch would wrap the worker's
    whole trace into its text. A worker that dies is one line too.
    """

    def __init__(self, dataset: Samples, batches: RankBatches, workers: int) -> None:
        self.workers = workers
        # Besides those asked for, one is in use, and a loop still names the one before as it asks.
        self.buffers = BatchBuffers(dataset.layout, batches.micro_batch, AHEAD * workers + 2)
        if torch.cuda.is_available():
            self.buffers.pin()
        # Spawned, not forked: fetching runs an event loop in a thread, which a fork breaks.
        self.loader = DataLoader(
            _Filling(dataset, self.buffers),
            batch_sampler=_Requests(batches, self.buffers.slots, max(workers, 1)),
            num_workers=workers,
            prefetch_factor=AHEAD if workers > 0 else None,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers > 0 else None,
            collate_fn=_as_it_is,
            worker_init_fn=functools.partial(_leave_signals_to_the_rank, os.getpid()),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches: tensors of a sample's layout stacked, anything else listed.

        Raises:
            UserError: a case that cannot be read, or a worker that died.
            RuntimeError: a batch is still held whose memory is about to be filled again.
        """
        handed: list[list[weakref.ref[Any]]] = []
        with _held_signals(), worker_environment(threads=1):
            filling = iter(self.loader)
        if self.workers:
            # After torch's own, and so run before them: those would wait for each worker.
            atexit.unregister(_kill_workers)
            atexit.register(_kill_workers)
        try:
            while True:
                if len(handed) > 1 and any(array() is not None for array in handed.pop(0)):
                    raise RuntimeError("a batch was kept beyond the next one: clone its tensors")
                filled = next(filling, None)
                if filled is None:
                    return
                if isinstance(filled, UserError):
                    raise filled
                arrays = self.buffers.arrays(filled.slot)
                handed.append([weakref.ref(array) for array in arrays.values()])
                batch = {name: torch.from_numpy(arrays.pop(name)) for name in list(arrays)}
                yield {**batch, **filled.listed}
                del batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that loads data died ({' '.join(str(error).split())}): the machine, or "
                f"its shared memory (df -h /dev/shm), is likely full: lower --workers (now "
                f"{self.workers}) or ask for more memory"
            ) from error


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Worker processes begin with these signals held, so that none ends them while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_rank(rank: int, worker: int) -> None:
    """Slurm and the launcher signal a rank's whole process group; the rank saves, and ends these.

    A worker whose rank is gone ends by itself, as torch has it from here on.

    Args:
        rank: number of the rank's process.
    """
    if os.getppid() != rank:  # it died while this one started: torch would wait for another parent
        os._exit(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _kill_workers() -> None:
    """End the workers of a process that ends without having let go of its loader.

    multiprocessing would send each a SIGTERM, which they leave to the rank, and wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report their death
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


@dataclass(frozen=True)
class _Request:
    """A batch's samples, the slot that they are to fill, and the samples of the batches that the
    same worker makes next: torch deals batches to its workers in turn.
    """

    slot: int
    items: Sequence[Item]
    later: Sequence[Item]


@dataclass(frozen=True)
class _Filled:
    """A batch whose tensors lie in a slot."""

    slot: int
    listed: dict[str, list[Any]]


class _Requests(Sampler[Any]):
    """Batches to ask for, each with the slot that the oldest of those before it has left."""

    def __init__(self, batches: RankBatches, slots: int, workers: int) -> None:
        self.batches, self.slots, self.workers = batches, slots, workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        batches_each = max(1, -(-IN_SIGHT // self.batches.micro_batch) - 1)
        held: deque[list[Item]] = deque()
        slots = itertools.cycle(range(self.slots))
        for items in self.batches:
            held.append(items)
            if len(held) > batches_each * self.workers:
                yield self._request(next(slots), held)
        while held:
            yield self._request(next(slots), held)

    def _request(self, slot: int, held: deque[list[Item]]) -> _Request:
        items = held.popleft()
        own = itertools.islice(held, self.workers - 1, None, self.workers)
        return _Request(slot, items, list(itertools.chain.from_iterable(own)))


class _Filling(Dataset[Any]):
    """Puts samples into a batch's slot, out of which the rank takes them."""

    def __init__(self, dataset: Samples, buffers: BatchBuffers) -> None:
        self.dataset, self.buffers = dataset, buffers

    def __getitems__(self, request: _Request) -> _Filled | UserError:
        """Fill a slot; an error is handed on, so that it leaves the worker as it is."""
        if isinstance(self.dataset, LooksAhead):
            self.dataset.ahead([*request.items, *request.later])
        batch = self.buffers.batch(request.slot)
        try:
            return _Filled(request.slot, fill(batch, self.dataset, request.items))
        except UserError as error:
            return error


def fill(
    batch: Mapping[str, torch.Tensor], dataset: Any, items: Sequence[Any]
) -> dict[str, list[Any]]:
    """Put a dataset's samples into a batch's tensors; return what is no tensor of it, by name.

    Raises:
        ValueError: a sample's tensor does not have the batch's shape or dtype.
    """
    listed: dict[str, list[Any]] = {}
    for index, item in enumerate(items):
        place = {name: values[index] for name, values in batch.items()}
        if isinstance(dataset, PutsSamples):
            rest = dataset.put(item, place)
        else:
            rest = dict(dataset[item])
            for name, tensor in place.items():
                _copy(tensor, rest.pop(name), name)
        for name, value in rest.items():
            listed.setdefault(name, []).append(value)
    return listed


def _copy(place: torch.Tensor, value: torch.Tensor, name: str) -> None:
    if place.shape != value.shape or place.dtype != value.dtype:
        # copy_ would stretch a single channel over all of them.
        raise ValueError(
            f"{name} of a sample is {tuple(value.shape)} {value.dtype}, the layout says "
            f"{tuple(place.shape)} {place.dtype}"
        )
    place.copy_(value)


def _as_it_is(filled: Any) -> Any:
    return filled


def timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Batches, each with the milliseconds that the training step waited for it."""
    asked = time.perf_counter()
    for batch in batches:
        yield batch, (time.perf_counter() - asked) * 1000
        asked = time.perf_counter()
