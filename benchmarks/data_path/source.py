"""What every competitor's store is made from, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mvl_dist.store import Shape3D, read_array

TASK = "Task97_Mosaic"
STARTS = 2
HIPPOCAMPUS = "Task04_Hippocampus"
Arrays = tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        cases: of a first epoch, a whole number of batches.
        grid: voxels along each axis of a sample.
        patch: of a crop at the scan's own resolution.
        scan: voxels of a scan along x, y, z.
        cell: what is taken of each small scan that it is laid of.
        crops: of a round.
        cut: cases that crops are taken of.
    """

    cases: int
    grid: int
    patch: int
    scan: Shape3D
    cell: Shape3D
    crops: int
    cut: int


FULL = Size(32, 128, 96, (192, 192, 160), (32, 48, 32), 60, 8)
QUICK = Size(8, 32, 24, (48, 48, 40), (32, 48, 24), 6, 2)


@dataclass(frozen=True)
class Source:
    """The converted task.

    Attributes:
        msd: the task's folder, with dataset.json and the NIfTI files.
        store: ours.
        cases: those that epochs are made of.
        starts: more, by which workers are started before anything is timed. Each has its own: one
            that finds a case in the cache would import what decodes while it is timed.
        made_of: what its scans are laid of, in words.
    """

    msd: Path
    store: Path
    cases: tuple[str, ...]
    starts: tuple[str, ...]
    size: Size
    made_of: str

    @property
    def everything(self) -> tuple[str, ...]:
        """All cases, those to start with last."""
        return (*self.cases, *self.starts)

    @property
    def cut(self) -> tuple[str, ...]:
        """Cases that crops are taken of: the only ones that are kept at the task's spacing."""
        return self.cases[: self.size.cut]

    def arrays(self, case: str) -> Arrays:
        """Image (1, D, H, W) and label (D, H, W) at the task's grid."""
        return self._pair(case, "image", "label")

    def spaced(self, case: str) -> Arrays:
        """Image and label at the task's spacing."""
        return self._pair(case, "image_spaced", "label_spaced")

    def _pair(self, case: str, image: str, label: str) -> Arrays:
        return (
            read_array(self.store, TASK, case, image),
            read_array(self.store, TASK, case, label),
        )
