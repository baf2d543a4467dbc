"""Training crops at the task's spacing, sampled as nnU-Net samples them.

Of each global batch the last crops are laid around a foreground voxel: a class is drawn from those
of the case, each as probable as the others, then one of its voxels (`foreground_spaced`). The
others lie anywhere. Where a crop lies depends on seed, epoch and position alone: on no number of
ranks or workers, and a resumed epoch goes on with the very crops that are left.

A crop stays inside the scan, as the windows of inference do: one around a voxel near the border is
moved inwards. (nnU-Net does so at the lower border; at the upper one it pads.) Where the scan is
smaller than the crop it lies in the middle, as in MONAI's sliding window, and is padded: the
image, normalised, with 0, and the label with background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from mvl_dist.case_reader import CaseReader
from mvl_dist.config import DataConfig, Shape3D
from mvl_dist.data import ARRAYS_OF, Batch, Item, Layout, layout_of, number_of
from mvl_dist.store import Manifest

# Keeps a crop's place apart from its augmentation, which follows the same seed and position.
PLACES = 1


class PatchDataset(Dataset[Batch]):
    """Crops of cases; an item holds what one of `CaseDataset` holds, (D, H, W) being the crop.

    It is `patches_per_case` times as long as there are cases.
    """

    def __init__(
        self,
        reader: CaseReader,
        manifest: Manifest,
        cases: Sequence[str],
        data: DataConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        self.reader = reader
        self.layout = layout_of(manifest, data.grid, data.channels)
        self.cases = tuple(cases)
        self.shapes = [manifest.cases[case].spaced_shape for case in cases]
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __len__(self) -> int:
        return len(self.cases) * self.data.patches_per_case

    def ahead(self, items: Sequence[Item]) -> None:
        """Say which items will be asked for soon; a store far away sends what it can meanwhile."""
        image, label = ARRAYS_OF["spaced"]
        cases = [self.cases[item.case % len(self.cases)] for item in items]
        drawn = [
            case
            for case, item in zip(cases, items, strict=True)
            if is_foreground(item.position, self.batch_size, self.data.foreground)
        ]
        self.reader.ahead(drawn, {"foreground_spaced": None})
        arrays = {image: number_of(self.data.channels), label: None}
        self.reader.ahead(cases, arrays, parts=True)

    def __getitem__(self, item: Item) -> Batch:
        place = empty_sample(self.layout)
        return {**self.put(item, place), **place}

    def put(self, item: Item, place: Mapping[str, torch.Tensor]) -> Batch:
        """Read a crop's tensors into their places; returns the rest of the sample."""
        index = item.case % len(self.cases)
        case, shape = self.cases[index], self.shapes[index]
        assert shape is not None
        generator = np.random.Generator(
            np.random.PCG64([self.seed, item.epoch, item.position, PLACES])
        )
        around = None
        if is_foreground(item.position, self.batch_size, self.data.foreground):
            around = drawn_voxel(self.reader.array(case, "foreground_spaced"), generator)
        start = crop_start(shape, self.data.grid, generator, around)
        put_crop(self.reader, case, shape, start, self.data, place)
        return {"case": case, "position": item.position}


def is_foreground(position: int, batch_size: int, share: float) -> bool:
    """Whether the crop at a position of an epoch is laid around foreground.

    Of every global batch these are the last round(share * batch) ones, as in nnU-Net, and one more
    where an epoch would else stay below its share: every third batch of one has foreground at 1/3.
    """
    batch, place = divmod(position, batch_size)
    before, after = (math.floor(n * batch_size * share + 1e-9) for n in (batch, batch + 1))
    return place >= batch_size - max(round(share * batch_size), after - before)


def drawn_voxel(
    foreground: npt.NDArray[np.uint16], generator: np.random.Generator
) -> tuple[int, int, int] | None:
    """A voxel (d, h, w) of a class drawn evenly from those of a case; None if it has none.

    Args:
        foreground: (N, 4) of d, h, w, label.
    """
    labels = np.unique(foreground[:, 3])
    if not len(labels):
        return None
    voxels = np.flatnonzero(foreground[:, 3] == generator.choice(labels))
    d, h, w, _ = (int(value) for value in foreground[generator.choice(voxels)])
    return d, h, w


def crop_start(
    shape: Sequence[int],
    crop: Shape3D,
    generator: np.random.Generator,
    around: tuple[int, int, int] | None,
) -> tuple[int, int, int]:
    """First voxel of a crop, negative where the scan is smaller: anywhere, or around a voxel.

    Args:
        shape: D, H, W of the scan.
    """
    start = []
    for axis in range(3):
        room = shape[axis] - crop[axis]
        if room <= 0:
            start.append(-(-room // 2))
        elif around is None:
            start.append(int(generator.integers(room + 1)))
        else:
            start.append(min(max(around[axis] - crop[axis] // 2, 0), room))
    d, h, w = start
    return d, h, w


def crop_around_reference(
    reader: CaseReader, manifest: Manifest, case: str, data: DataConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The crop in the middle of the box of a case's foreground, or of the scan where it has none.

    Returns:
        Image (C, D, H, W) float16 and label (D, H, W) uint8.
    """
    shape = manifest.cases[case].spaced_shape
    assert shape is not None
    voxels = reader.array(case, "foreground_spaced")[:, :3].astype(int)
    low, high = (voxels.min(0), voxels.max(0)) if len(voxels) else (np.zeros(3, int), shape)
    d, h, w = (int(middle) for middle in np.add(low, high) // 2)
    start = crop_start(shape, data.grid, np.random.default_rng(0), (d, h, w))
    place = empty_sample(layout_of(manifest, data.grid, data.channels))
    put_crop(reader, case, shape, start, data, place)
    return place["image"], place["label"]


def empty_sample(layout: Layout) -> dict[str, torch.Tensor]:
    """Memory for a sample's tensors."""
    return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}


def put_crop(
    reader: CaseReader,
    case: str,
    shape: Sequence[int],
    start: Sequence[int],
    data: DataConfig,
    place: Mapping[str, torch.Tensor],
) -> None:
    """Read a crop into a sample's place; see `read_crop`."""
    image, label = ARRAYS_OF["spaced"]
    channels = number_of(data.channels)
    read_crop(reader, case, image, shape, start, place["image"].numpy(), channels)
    read_crop(reader, case, label, shape, start, place["label"].numpy())


def read_crop(
    reader: CaseReader,
    case: str,
    array: str,
    shape: Sequence[int],
    start: Sequence[int],
    out: npt.NDArray[Any],
    channels: int | None = None,
) -> None:
    """Read a crop of an array, 0 where it reaches beyond the scan, into `out` (..., D, H, W).

    Args:
        shape: D, H, W of the scan.
        channels: how many of an image's channels, from the first; all by default.

    Raises:
        UserError: as `CaseReader.box`.
    """
    crop = out.shape[-3:]
    ends = [min(first + size, edge) for first, size, edge in zip(start, crop, shape, strict=True)]
    inside = [slice(max(first, 0), end) for first, end in zip(start, ends, strict=True)]
    there = [slice(max(-f, 0), end - f) for f, end in zip(start, ends, strict=True)]
    if any(cut.stop - cut.start < size for cut, size in zip(there, crop, strict=True)):
        out.fill(0)
    d, h, w = inside
    place = out[..., there[0], there[1], there[2]]
    reader.box(case, array, (d, h, w), channels, place)
