"""The format of the Zarr store.

    STORE/
      zarr.json
      Task04_Hippocampus/              one Zarr v3 group a task
        zarr.json
        manifest.json                  written last, atomically: what a reader may trust
        cases/hippocampus_001/         one group a case, renamed into place when whole
          image         (C, D, H, W)     float16   normalised, resampled to the task's grid
          label         (D, H, W)        uint8     resampled to the same grid
          label_native  (D0, H0, W0)     uint8     untouched values at the scan's own spacing

Axes are D, H, W everywhere = inferior to superior, posterior to anterior, left to right: the
scan brought to the RAS+ orientation and its axes reversed, so that D counts axial slices.
`spacing_mm` has the same order. Every array is one chunk (a case is always read whole; smaller
chunks cost about 0.5 ms each) compressed with blosc-lz4 and closed by a crc32c, which Zarr checks
at every read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mvl_dist.tasks import Region, Task, task_from_plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STORE_VERSION = 1
MANIFEST = "manifest.json"
ARRAYS = ("image", "label", "label_native")

Shape3D = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class CaseArrays:
    """The three arrays of one case, shapes and dtypes as in the module's docstring."""

    image: npt.NDArray[np.float16]
    label: npt.NDArray[np.uint8]
    label_native: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CaseInfo:
    """What the manifest says of a case.

    Attributes:
        spacing_mm: voxel size of `label_native` along D, H, W.
        native_shape: shape of `label_native`.
        affine: 4x4, from voxel (w, h, d) of `label_native` to RAS+ millimetres (nibabel's order).
        source_orientation: axis codes of the file before it was reoriented, e.g. `LPS`.
        source_affine: 4x4 affine of the file as distributed.
        intensity: statistics a channel of the raw intensities.
        sources: a file's role (`image`, `label`) -> name, bytes, mtime_ns, sha256.
        arrays: array name -> sha256 of its decoded bytes in C order.
    """

    name: str
    spacing_mm: Spacing
    native_shape: Shape3D
    affine: tuple[tuple[float, ...], ...]
    source_orientation: str
    source_affine: tuple[tuple[float, ...], ...]
    intensity: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """What a task group holds; a case that is not listed here does not exist.

    Attributes:
        grid: D, H, W of `image` and `label`.
        split_seed: seed that decided the held-out test cases, which no statistic has seen.
        test_cases: those cases.
        normalisation: the scheme and the numbers that were applied.
        skipped: bad cases left out with `--skip-bad`, name -> reason.
    """

    version: int
    converter: str
    task: Task
    grid: Shape3D
    split_seed: int
    test_cases: tuple[str, ...]
    normalisation: Mapping[str, Any]
    cases: Mapping[str, CaseInfo]
    skipped: Mapping[str, str]

    @property
    def checksum(self) -> str:
        """Identity of the data: changes when any array, case, split or setting does.

        Paths, times and the order of writing do not count, so two conversions of the same files
        agree.
        """
        content = {
            "version": self.version,
            "task": asdict(self.task),
            "grid": self.grid,
            "test": sorted(self.test_cases),
            "cases": {name: dict(case.arrays) for name, case in sorted(self.cases.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def manifest_from_json(raw: dict[str, Any]) -> Manifest:
    """The inverse of `dataclasses.asdict`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: something else than that wrote it.
    """
    cases = {}
    for name, case in raw["cases"].items():
        fields = dict(case)
        fields["spacing_mm"] = tuple(fields["spacing_mm"])
        fields["native_shape"] = tuple(fields["native_shape"])
        for key in ("affine", "source_affine"):
            fields[key] = tuple(tuple(row) for row in fields[key])
        cases[name] = CaseInfo(**fields)
    return Manifest(
        version=raw["version"],
        converter=raw["converter"],
        task=task_from_plain(raw["task"]),
        grid=tuple(raw["grid"]),
        split_seed=raw["split_seed"],
        test_cases=tuple(raw["test_cases"]),
        normalisation=raw["normalisation"],
        cases=cases,
        skipped=raw["skipped"],
    )


def array_sha256(values: npt.NDArray[Any]) -> str:
    """Checksum of the decoded values: independent of codec and of chunking."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def regions_of(task: Task, target: str) -> Sequence[Region]:
    """The regions that a model marks, one mask each.

    `binary`: all labels merged; `labels`: one per label, which exclude each other; `regions`: those
    and the task's unions, which overlap.
    """
    if target == "binary":
        return (task.foreground,)
    unions = task.union_regions if target == "regions" else ()
    return (*task.label_regions, *unions)
