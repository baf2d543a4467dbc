"""Store to samples, and their order: the same global batches at any number of ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from mvl_dist.case_reader import CaseReader
from mvl_dist.store import Manifest, Shape3D
from mvl_dist.tasks import Region

Batch = dict[str, Any]
# Shape and dtype of each tensor of a sample, by its name.
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
# Image and label of a case by DataConfig.resolution.
ARRAYS_OF = {"grid": ("image", "label"), "spaced": ("image_spaced", "label_spaced")}


class Item(NamedTuple):
    """What a dataset is asked for: a case, for a place in an epoch's order."""

    case: int
    position: int = 0
    epoch: int = 0


def region_masks(label: torch.Tensor, regions: Sequence[Region]) -> torch.Tensor:
    """Binary masks of label maps: (..., D, H, W) integers -> (..., R, D, H, W) uint8, where it is.

    Made on the device from one byte a voxel, they need not travel there.
    """
    masks = torch.empty(
        (*label.shape[:-3], len(regions), *label.shape[-3:]), dtype=torch.uint8, device=label.device
    )
    for index, region in enumerate(regions):
        mask = masks[..., index, :, :, :]
        if label.device.type == "cpu":
            # numpy compares bytes faster than torch does, and torch.isin was most of what a sample
            # cost (benchmarks/region_masks.py).
            _mark(label.numpy(), region, mask.numpy().view(np.bool_))
        else:
            first, *others = (label == value for value in region.labels)
            mask.copy_(functools.reduce(torch.logical_or, others, first))
    return masks


def _mark(values: npt.NDArray[Any], region: Region, mask: npt.NDArray[np.bool_]) -> None:
    first, *others = region.labels
    np.equal(values, first, out=mask)
    for other in others:
        mask |= values == other


def load_image(
    reader: CaseReader, case: str, channels: str, resolution: str = "grid"
) -> torch.Tensor:
    """Image of a case, (C, D, H, W) float16; it may be the cache's own.

    Args:
        channels, resolution: as in `DataConfig`.
    """
    return torch.from_numpy(reader.array(case, ARRAYS_OF[resolution][0], number_of(channels)))


def number_of(channels: str) -> int | None:
    """How many channels, from the first, `DataConfig.channels` asks for; None is all."""
    return 1 if channels == "first" else None


def layout_of(manifest: Manifest, grid: Shape3D, channels: str) -> Layout:
    """Tensors of a sample that is (D, H, W) large."""
    count = number_of(channels) or len(manifest.task.modalities)
    return {"image": ((count, *grid), torch.float16), "label": (grid, torch.uint8)}


class CaseDataset(Dataset[Batch]):
    """Whole cases of a task, at the store's grid or at the task's spacing.

    An item holds `image` (C, D, H, W) float16, `label` (D, H, W) uint8, `case` and `position`. Its
    arrays may be the cache's own: they must not be written into. Those at the task's spacing differ
    in shape, and make no batch.
    """

    def __init__(
        self,
        reader: CaseReader,
        manifest: Manifest,
        cases: Sequence[str],
        channels: str,
        resolution: str = "grid",
    ) -> None:
        self.reader = reader
        self.cases = tuple(cases)
        self.channels, self.resolution = channels, resolution
        self.layout = layout_of(manifest, manifest.grid, channels)

    def __len__(self) -> int:
        return len(self.cases)

    def ahead(self, items: Sequence[Item]) -> None:
        """Say which items will be asked for soon; a store far away sends them meanwhile."""
        self.reader.ahead([self.cases[item.case] for item in items], self._arrays())

    def _arrays(self) -> dict[str, int | None]:
        image, label = ARRAYS_OF[self.resolution]
        return {image: number_of(self.channels), label: None}

    def put(self, item: Item, place: Mapping[str, torch.Tensor]) -> Batch:
        """Read a sample's tensors into their places; returns the rest of it."""
        case = self.cases[item.case]
        image, label = ARRAYS_OF[self.resolution]
        count = number_of(self.channels)
        self.reader.array(case, image, count, place["image"].numpy())
        self.reader.array(case, label, out=place["label"].numpy())
        return {"case": case, "position": item.position}

    def __getitem__(self, item: Item) -> Batch:
        case = self.cases[item.case]
        return {
            "image": load_image(self.reader, case, self.channels, self.resolution),
            "label": torch.from_numpy(self.reader.array(case, ARRAYS_OF[self.resolution][1])),
            "case": case,
            "position": item.position,
        }

    def in_turn(self, cases: Sequence[int]) -> Iterator[Batch]:
        """Items of some cases, by index; a store far away sends the next ones meanwhile."""
        names = self.reader.in_turn([self.cases[case] for case in cases], self._arrays())
        for case, _ in zip(cases, names, strict=True):
            yield self[Item(case)]


def epoch_order(num_cases: int, batch_size: int, seed: int, epoch: int) -> list[int]:
    """Order of the cases in an epoch, a whole number of global batches long.

    Every case comes at least once; the last batch is filled up from the beginning of the order, so
    that no case is dropped and a task with fewer cases than a batch can be trained.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(num_cases)
    length = -(-num_cases // batch_size) * batch_size
    return [int(index) for index in np.resize(order, length)]


class RankBatches(Sampler[list[Item]]):
    """This rank's slice of every global batch of an epoch."""

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

    def __iter__(self) -> Iterator[list[Item]]:
        order = epoch_order(self.num_cases, self.batch_size, self.seed, self.epoch)
        for batch in range(self.first_batch, self.batches_per_epoch):
            start = batch * self.batch_size + self.rank * self.micro_batch
            yield [Item(order[i], i, self.epoch) for i in range(start, start + self.micro_batch)]
