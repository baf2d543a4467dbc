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
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from mvl_dist.case_reader import CaseReader
from mvl_dist.config import DataConfig, Shape3D
from mvl_dist.data import ARRAYS_OF, Batch, Item, layout_of, number_of
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
        for item in items:
            drawn = is_foreground(item.position, self.batch_size, self.data.foreground)
            image, label = ARRAYS_OF["spaced"]
            arrays = {image: number_of(self.data.channels), label: None}
            if drawn:
                arrays["foreground_spaced"] = None
            self.reader.ahead([self.cases[item.case % len(self.cases)]], arrays)

    def __getitem__(self, item: Item) -> Batch:
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
        image, label = image_and_label(self.reader, case, shape, start, self.data)
        return {
            "image": image,
            "label": label,
            "case": case,
            "position": item.position,
        }


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
    reader: CaseReader, case: str, shape: Shape3D, data: DataConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The crop in the middle of the box of a case's foreground, or of the scan where it has none.

    Args:
        shape: D, H, W of the scan.

    Returns:
        Image (C, D, H, W) float16 and label (D, H, W) uint8.
    """
    voxels = reader.array(case, "foreground_spaced")[:, :3].astype(int)
    low, high = (voxels.min(0), voxels.max(0)) if len(voxels) else (np.zeros(3, int), shape)
    d, h, w = (int(middle) for middle in np.add(low, high) // 2)
    start = crop_start(shape, data.grid, np.random.default_rng(0), (d, h, w))
    return image_and_label(reader, case, shape, start, data)


def image_and_label(
    reader: CaseReader, case: str, shape: Shape3D, start: Sequence[int], data: DataConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop as the model sees it; see `read_crop`."""
    image_array, label_array = ARRAYS_OF["spaced"]
    channels = number_of(data.channels)
    image = read_crop(reader, case, image_array, shape, start, data.grid, channels)
    label = read_crop(reader, case, label_array, shape, start, data.grid)
    return torch.from_numpy(image), torch.from_numpy(label)


def read_crop(
    reader: CaseReader,
    case: str,
    array: str,
    shape: Sequence[int],
    start: Sequence[int],
    crop: Shape3D,
    channels: int | None = None,
) -> npt.NDArray[Any]:
    """A crop of an array (..., D, H, W), 0 where it reaches beyond the scan.

    Args:
        shape: D, H, W of the scan.
        channels: how many of an image's channels, from the first; all by default.

    Raises:
        UserError: as `CaseReader.box`.
    """
    stop = [first + size for first, size in zip(start, crop, strict=True)]
    d, h, w = (
        slice(max(first, 0), min(last, size))
        for first, last, size in zip(start, stop, shape, strict=True)
    )
    values = reader.box(case, array, (d, h, w), channels)
    beyond = [
        (max(-first, 0), max(last - size, 0))
        for first, last, size in zip(start, stop, shape, strict=True)
    ]
    if not np.any(beyond):
        return values
    return np.pad(values, [(0, 0)] * (values.ndim - 3) + beyond)
