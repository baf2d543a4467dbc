"""Epochs of all competitors, in turns."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.data_path import disk
from benchmarks.data_path.contract import Competitor, Order
from benchmarks.data_path.rows import COLD, LATER, LIMITED, WARM, Result
from benchmarks.data_path.timing import Sink, Used, Watch
from mvl_dist.data import Batch

ROUNDS_OF_THE_SLOW = 2
MAY_STAY = 0.02


class Running:
    """A competitor's loader with its workers up and nothing of its cases read yet."""

    def __init__(self, competitor: Competitor, workers: int, cold: bool, drop_all: bool) -> None:
        self.competitor = competitor
        if cold:
            disk.forget(competitor.files(), drop_all)
        else:
            read_all(competitor.files())
        watch = Watch()
        competitor.fill()
        self.before = watch.so_far() if competitor.keeps else (0.0, 0.0, 0)
        self.order = Order(len(competitor.cases(workers)))
        self.batches: Iterable[Batch] = competitor.batches(self.order, workers)
        self.order.start(max(workers, 1), once=competitor.most > 0)
        Sink().take(self.batches)

    def epoch(self, sink: Sink, passes: int = 1) -> Used:
        """An epoch, or several as one."""
        self.order.go(passes)
        used = sink.take(self.batches)
        before, self.before = self.before, (0.0, 0.0, 0)
        return used.and_before(*before)

    def stop(self) -> None:
        """End its workers and what it kept."""
        self.batches = ()
        gc.collect()  # a loader's workers end with it
        self.competitor.forget()


def check(competitors: Sequence[Competitor]) -> None:
    """See that all deliver the same arrays, in two epochs each.

    Raises:
        SystemExit: one does not; names it and the case.
    """
    for competitor in competitors:
        with _running(competitor, 0, False, False) as running:
            for _ in range(2):
                running.order.go()
                seen = set()
                for batch in running.batches:
                    for image, label, case in zip(
                        batch["image"], batch["label"], batch["case"], strict=True
                    ):
                        expected = competitor.source.arrays(case)
                        for ours, theirs in zip(expected, (image, label), strict=True):
                            _compare(competitor, case, ours, theirs.numpy())
                        seen.add(case)
                if seen != set(competitor.cases(0)):
                    raise SystemExit(f"{competitor.name}: an epoch leaves cases out")


def _compare(competitor: Competitor, case: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    same = (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if competitor.equal:
        same = same and np.array_equal(ours, theirs)
    if not same:
        raise SystemExit(f"{competitor.name}: {case} differs from the store's")


@contextlib.contextmanager
def _running(competitor: Competitor, workers: int, cold: bool, drop_all: bool) -> Iterator[Running]:
    running = Running(competitor, workers, cold, drop_all)
    try:
        yield running
    finally:
        running.stop()


class Epochs:
    """Measures all competitors at one number of workers, the loader of one at a time.

    Args:
        seconds: that later epochs should last about, so that their figure is steady.
        limit_mb_per_s: of the disk; 0: no measurement at a limited rate.
        drop_all: whether to take all of the system's page cache away, not the files alone.
    """

    def __init__(
        self,
        result: Result,
        competitors: Sequence[Competitor],
        workers: int,
        seconds: float,
        limit_mb_per_s: int,
        drop_all: bool,
    ) -> None:
        self.result, self.workers, self.seconds = result, workers, seconds
        self.competitors = list(competitors)
        self.limit_mb_per_s, self.drop_all = limit_mb_per_s, drop_all
        self.sink = Sink()

    def round(self, number: int) -> None:
        """All states of all competitors, who take turns at being first."""
        turn = number % len(self.competitors)
        for competitor in self.competitors[turn:] + self.competitors[:turn]:
            if competitor.most and number >= ROUNDS_OF_THE_SLOW:
                continue
            states = [self._cold, self._limited, self._warm]
            if competitor.most:
                states = [self._warm]
            elif not self.limit_mb_per_s:
                states.remove(self._limited)
            # Whoever keeps nothing meets every first epoch as it met the one before.
            for group in [[state] for state in states] if competitor.keeps else [states]:
                cold = group[0] != self._warm
                with _running(competitor, self.workers, cold, self.drop_all) as running:
                    for state in group:
                        state(running, number)

    def _cold(self, running: Running, number: int) -> None:
        self._forget(running.competitor)
        self._add(running, COLD, number, running.epoch(self.sink))

    def _limited(self, running: Running, number: int) -> None:
        self._forget(running.competitor)
        with disk.limited(running.competitor.source.store, self.limit_mb_per_s):
            used = running.epoch(self.sink)
        self._add(running, LIMITED, number, used)

    def _warm(self, running: Running, number: int) -> None:
        competitor = running.competitor
        read_all(competitor.files())
        used = running.epoch(self.sink)
        self._add(running, WARM, number, used)
        if competitor.most:
            return
        if competitor.keeps:
            used = running.epoch(self.sink)  # the pace of later ones
        passes = min(max(round(self.seconds / used.seconds), 1), 40)
        self._add(running, LATER, number, running.epoch(self.sink, passes))

    def _forget(self, competitor: Competitor) -> None:
        # The cases that started the workers may stay: no epoch reads them.
        starts = {*competitor.source.starts}
        files = [path for path in competitor.files() if not starts & {*path.parts}]
        disk.forget(files, self.drop_all)
        cached = disk.cached_share(files)
        if cached > MAY_STAY:
            note = f"{competitor.name}: {cached:.0%} of its files stayed in the page cache"
            self.result.notes.append(note)

    def _add(self, running: Running, state: str, number: int, used: Used) -> None:
        self.result.row(running.competitor.name, state, self.workers).used[number] = used


def read_all(files: Sequence[Path]) -> None:
    """Bring files into the page cache."""
    for path in files:
        path.read_bytes()
