"""What a competitor delivers, and how it comes to a batch.

A sample is `image` (C, D, H, W) float16 and `label` (D, H, W) uint8, with its case's name. All
competitors deliver the same arrays (one, which resamples in another way, only their shapes), and
batches pass through the project's own `BatchLoader`: worker processes that are spawned, outlive
the epochs and fill shared batches. So that what differs is the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.data_path.source import STARTS, Arrays, Source
from mvl_dist.data import Batch, Item, RankBatches
from mvl_dist.loading import AHEAD, BatchLoader

BATCH = 4
Box = tuple[slice, slice, slice]


class Order(RankBatches):
    """Which samples are asked for: to start the workers, or so many passes over the cases."""

    def __init__(self, cases: int) -> None:
        super().__init__(cases, BATCH, 0, 1, seed=0)
        self.starting = 0
        self.start_batch = BATCH
        self.passes = 1

    def start(self, workers: int, *, once: bool) -> None:
        """Next come batches of the cases that are there for it.

        So many that each piece of the loader's memory is used twice, which is not the store's cost.

        Args:
            once: one sample a worker will do, for whoever takes a second for each.
        """
        self.starting = workers if once else 2 * (AHEAD * workers + 2)
        self.start_batch = 1 if once else BATCH

    def go(self, passes: int = 1) -> None:
        """Next come all cases, in another order each pass."""
        self.starting, self.passes = 0, passes

    def __len__(self) -> int:
        return self.starting or self.passes * self.batches_per_epoch

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in range(self.starting):
            yield [Item(self.num_cases + batch % STARTS)] * self.start_batch
        for _ in range(0 if self.starting else self.passes):
            self.set_position(self.epoch + 1)
            yield from super().__iter__()


class Competitor:
    """A way to keep cases and to read them.

    Attributes:
        name: in tables.
        says: what it is, in a line.
        equal: its arrays are ours, to the bit.
        keeps: it keeps samples from its first epoch for later ones, so that every first epoch
            needs a fresh start.
        most: of cases that one worker reads in an epoch; 0: all.
        folder: for its files, if it makes any.
    """

    name: ClassVar[str]
    says: ClassVar[str]
    equal: ClassVar[bool] = True
    keeps: ClassVar[bool] = False
    most: ClassVar[int] = 0

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder

    def build(self) -> None:
        """Write its own store into its folder (which is there)."""

    def build_cut(self) -> None:
        """Write what its crops are cut from."""

    def files(self) -> list[Path]:
        """What an epoch reads of the disk."""
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]

    @property
    def kept(self) -> tuple[str, ...]:
        """Cases that its files hold."""
        return self.source.everything

    def fill(self) -> None:
        """What it does before workers start, as part of its first epoch."""

    def forget(self) -> None:
        """Leave nothing behind of what it kept."""

    def read(self, case: str) -> Arrays:
        """Image and label of a case."""
        raise NotImplementedError

    def box(self, case: str, box: Box) -> Arrays:
        """A box of image and label at the task's spacing; not all can."""
        raise NotImplementedError

    @classmethod
    def cuts(cls) -> bool:
        """Whether it can read boxes."""
        return cls.box is not Competitor.box

    def cases(self, workers: int) -> tuple[str, ...]:
        """What an epoch reads."""
        return self.source.cases[: self.most * max(workers, 1) or None]

    def batches(self, order: Order, workers: int) -> Iterable[Batch]:
        """Batches of an epoch after an epoch."""
        return BatchLoader(Samples(self, self.cases(workers)), order, workers)


class Samples:
    """A competitor's cases as samples; the last ones start the workers."""

    def __init__(self, competitor: Competitor, cases: tuple[str, ...]) -> None:
        self.competitor = competitor
        self.cases = (*cases, *competitor.source.starts)
        grid = (competitor.source.size.grid,) * 3
        self.layout = {"image": ((1, *grid), torch.float16), "label": (grid, torch.uint8)}

    def __getitem__(self, item: Item) -> dict[str, Any]:
        case = self.cases[item.case]
        image, label = (torch.from_numpy(array) for array in self.competitor.read(case))
        return {"image": image, "label": label, "case": case}
