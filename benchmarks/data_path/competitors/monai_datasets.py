"""MONAI's PersistentDataset (a torch.save file a sample) and CacheDataset (samples in memory).

Both are fed with our arrays: what they were made from costs them nothing here. A CacheDataset that
runs a pipeline from NIfTI files takes in its first epoch what the paper's way takes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Transform

from benchmarks.data_path.competitors.ours import OursUncached
from benchmarks.data_path.contract import Competitor
from benchmarks.data_path.source import Arrays, Source


class FromStore(Transform):
    """A deterministic transform, whose result is what both keep."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, data: dict[str, str]) -> dict[str, torch.Tensor]:
        """Case's name -> its two tensors."""
        image, label = self.source.arrays(data["case"])
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}


def _items(source: Source) -> list[dict[str, str]]:
    return [{"case": case} for case in source.everything]


def _read(dataset: Any, source: Source, case: str) -> Arrays:
    sample = dataset[source.everything.index(case)]
    return sample["image"].numpy(), sample["label"].numpy()


class Persistent(Competitor):
    """Its files are there before the first epoch."""

    name = "MONAI PersistentDataset"
    says = "torch.save of image and label a case, made beforehand"

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__(source, folder)
        self.dataset = PersistentDataset(_items(source), FromStore(source), folder)

    def build(self) -> None:
        """Its first pass writes."""
        for index in range(len(self.dataset)):
            self.dataset[index]

    def read(self, case: str) -> Arrays:
        """torch.load."""
        return _read(self.dataset, self.source, case)


class Cache(Competitor):
    """Reads everything before the first batch, in every start of a program."""

    name = "MONAI CacheDataset"
    says = "samples in memory, read from our store at the start by one thread a core"
    keeps = True

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__(source, folder)
        self.dataset: CacheDataset | None = None

    def files(self) -> list[Path]:
        """Ours, which it reads at its start."""
        return OursUncached(self.source, self.folder).files()

    def fill(self) -> None:
        """All samples."""
        self.dataset = CacheDataset(
            _items(self.source),
            FromStore(self.source),
            num_workers=len(os.sched_getaffinity(0)),
            progress=False,
            copy_cache=False,  # a copy of each sample, for transforms that write into it
        )

    def forget(self) -> None:
        """Free the memory."""
        self.dataset = None

    def read(self, case: str) -> Arrays:
        """From memory."""
        return _read(self.dataset, self.source, case)
