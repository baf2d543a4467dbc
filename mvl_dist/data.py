"""Store to samples, and their order: the same global batches at any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mvl_dist.case_reader import CaseReader
from mvl_dist.store import Manifest, regions_of
from mvl_dist.tasks import Region

Batch = dict[str, Any]


def region_masks(label: torch.Tensor, regions: Sequence[Region]) -> torch.Tensor:
    """Binary masks of a label map: (D, H, W) integers on the CPU -> (R, D, H, W) uint8."""
    # numpy compares bytes faster than torch does, and torch.isin was most of what a sample cost
    # (benchmarks/region_masks.py).
    values = label.numpy()
    masks = np.empty((len(regions), *values.shape), dtype=np.bool_)
    for mask, region in zip(masks, regions, strict=True):
        first, *others = region.labels
        np.equal(values, first, out=mask)
        for other in others:
            mask |= values == other
    return torch.from_numpy(masks.view(np.uint8))


def load_image(reader: CaseReader, case: str, channels: str) -> torch.Tensor:
    """Image of a case as the model sees it, (C, D, H, W) float16; `channels`: first or all."""
    image = reader.array(case, "image")
    return torch.from_numpy(np.ascontiguousarray(image[:1] if channels == "first" else image))


class CaseDataset(Dataset[Batch]):
    """Cases of a task at the store's grid.

    An item is asked for as (case index, position in the epoch) and holds `image` (C, D, H, W)
    float16, `target` (R, D, H, W) uint8, `case` and `position`.
    """

    def __init__(
        self, store: Path, manifest: Manifest, cases: Sequence[str], channels: str, target: str
    ) -> None:
        self.reader = CaseReader(store, manifest.task.name)
        self.cases = tuple(cases)
        self.channels = channels
        self.regions = tuple(regions_of(manifest.task, target))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        index, position = item
        case = self.cases[index]
        label = torch.from_numpy(self.reader.array(case, "label"))
        return {
            "image": load_image(self.reader, case, self.channels),
            "target": region_masks(label, self.regions),
            "case": case,
            "position": position,
        }


def epoch_order(num_cases: int, batch_size: int, seed: int, epoch: int) -> list[int]:
    """Order of the cases in an epoch, a whole number of global batches long.

    Every case comes at least once; the last batch is filled up from the beginning of the order, so
    that no case is dropped and a task with fewer cases than a batch can be trained.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(num_cases)
    length = -(-num_cases // batch_size) * batch_size
    return [int(index) for index in np.resize(order, length)]


class RankBatches(Sampler[list[tuple[int, int]]]):
    """This rank's slice of every global batch of an epoch, as (case index, position) pairs."""

    def __init__(
        self, num_cases: int, batch_size: int, rank: int, world_size: int, seed: int
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"global batch {batch_size} does not divide among {world_size} ranks")
        self.num_cases, self.batch_size, self.seed = num_cases, batch_size, seed
        self.micro_batch = batch_size // world_size
        self.rank = rank
        self.epoch = 0
        self.first_batch = 0

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and the global batch that a resumed epoch begins with."""
        self.epoch, self.first_batch = epoch, first_batch

    @property
    def batches_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return -(-self.num_cases // self.batch_size)

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(self.num_cases, self.batch_size, self.seed, self.epoch)
        for batch in range(self.first_batch, self.batches_per_epoch):
            start = batch * self.batch_size + self.rank * self.micro_batch
            yield [(order[i], i) for i in range(start, start + self.micro_batch)]
