"""WebDataset: samples one after the other in tar files, read as a stream, in one order."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.data_path.contract import BATCH, Competitor, Order
from benchmarks.data_path.source import Arrays
from mvl_dist.data import Batch


class Tar(Competitor):
    """A tar file of as many samples as a batch; torch's loader, for it has no index to ask by."""

    name = "WebDataset tar"
    says = "uncompressed .npy members in tar files, a stream through torch's DataLoader"

    @property
    def kept(self) -> tuple[str, ...]:
        """A stream ends where an epoch does."""
        return self.source.cases

    def build(self) -> None:
        """One shard a batch."""
        cases = self.kept
        for first in range(0, len(cases), BATCH):
            with webdataset.TarWriter(str(self.folder / f"{first:06d}.tar")) as tar:
                for case in cases[first : first + BATCH]:
                    image, label = self.source.arrays(case)
                    tar.write({"__key__": case, "image.npy": _npy(image), "label.npy": _npy(label)})

    def batches(self, order: Order, workers: int) -> Iterable[Batch]:
        """As many passes as the order says."""
        return _Passes(order, self.files(), workers)

    def read(self, case: str) -> Arrays:
        """Not asked for: a stream."""
        raise NotImplementedError


class _Passes:
    def __init__(self, order: Order, shards: list[Path], workers: int) -> None:
        self.order = order
        stream = webdataset.WebDataset(
            [str(shard) for shard in shards], shardshuffle=False, empty_check=False
        ).map(_sample)
        self.loader = DataLoader(
            stream,
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.order.passes):
            yield from self.loader


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _sample(members: dict[str, Any]) -> dict[str, Any]:
    arrays = {part: np.load(io.BytesIO(members[f"{part}.npy"])) for part in ("image", "label")}
    tensors = {part: torch.from_numpy(values) for part, values in arrays.items()}
    return {**tensors, "case": members["__key__"]}
