"""Decoded arrays in .npy files, memory-mapped: nothing to decode, the most bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_path.contract import Box, Competitor, Order, Samples
from benchmarks.data_path.source import Arrays
from mvl_dist.data import Batch, Item


class Memmap(Competitor):
    """The limit of a store that is read through files."""

    name = "memmap"
    says = "decoded .npy files, memory-mapped: the limit"

    def build(self) -> None:
        """Two files a case."""
        for case in self.source.everything:
            self._save(self.folder, case, self.source.arrays(case))

    def build_cut(self) -> None:
        """The same at the task's spacing."""
        (self.folder / "spaced").mkdir()
        for case in self.source.cut:
            self._save(self.folder / "spaced", case, self.source.spaced(case))

    def _save(self, folder: Path, case: str, arrays: Arrays) -> None:
        for part, values in zip(("image", "label"), arrays, strict=True):
            np.save(folder / f"{case}.{part}.npy", values)

    def files(self) -> list[Path]:
        """Not those at the task's spacing."""
        return sorted(self.folder.glob("*.npy"))

    def read(self, case: str) -> Arrays:
        """Mapped, private to this process so that torch takes them."""
        image, label = (
            np.load(self.folder / f"{case}.{part}.npy", mmap_mode="c")
            for part in ("image", "label")
        )
        return image, label

    def box(self, case: str, box: Box) -> Arrays:
        """Copied out of the mapping."""
        image, label = (
            np.load(self.folder / "spaced" / f"{case}.{part}.npy", mmap_mode="r")
            for part in ("image", "label")
        )
        return np.ascontiguousarray(image[(..., *box)]), np.ascontiguousarray(label[box])


class MemmapTorch(Memmap):
    """The same files through torch's DataLoader as it comes."""

    name = "memmap, torch's loader"
    says = "the same through torch's DataLoader and its default collate, spawned workers"

    def build(self) -> None:
        """The files are there."""
        self.folder.rmdir()
        self.folder.symlink_to(self.folder.with_name("memmap"), target_is_directory=True)

    def build_cut(self) -> None:
        """None."""

    @classmethod
    def cuts(cls) -> bool:
        """Crops need no loader."""
        return False

    def batches(self, order: Order, workers: int) -> Iterable[Batch]:
        """Without the project's BatchLoader."""
        return DataLoader(
            _Map(Samples(self, self.cases(workers))),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )


class _Map(Dataset[Batch]):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, item: Item) -> Batch:
        return self.samples[item]
