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
        and, unless converted with `--spacing none`:
          image_spaced  (C, D1, H1, W1)  float16   normalised, resampled to the task's spacing
          label_spaced  (D1, H1, W1)     uint8     resampled to the same shape
          foreground_spaced  (N, 4)      uint16    labelled voxels of label_spaced: d, h, w, label

Axes are D, H, W everywhere = inferior to superior, posterior to anterior, left to right: the
scan brought to the RAS+ orientation and its axes reversed, so that D counts axial slices.
`spacing_mm` has the same order. Every grid covers the same box of space, so that voxel i of n has
its centre at (i + 1/2) / n of it.

The first three arrays and the foreground are one chunk each (always read whole; smaller chunks cost
about 0.5 ms each). Image and label at the task's spacing are read in boxes: chunks of 64^3 voxels,
all channels together, in one shard file a case and array; above 512 chunks a further shard along D.
Chunks are compressed with blosc-lz4, or stored as they are (blosc's level 0) where that saves less
than a tenth; each, and each shard's index, is closed by a crc32c that every read checks. The
zarr.json of a case and the manifest carry a checksum of themselves (mvl_dist/store/seal.py), and
that of the case holds the checksums of its arrays' zarr.json and, if it was not written by an
older program, size and CRC-32 of their other files (mvl_dist/store/file_sums.py).

Version 1 had no arrays at the task's spacing and no such checksums; it still reads, and
`mvl migrate` brings it to version 2.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mvl_dist.tasks import Region, Task, task_from_plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STORE_VERSION = 2
READABLE_VERSIONS = (1, 2)
MANIFEST = "manifest.json"
DOCUMENT = "zarr.json"
ARRAYS = ("image", "label", "label_native")
SPACED_ARRAYS = ("image_spaced", "label_spaced", "foreground_spaced")
# Read in boxes; every other array is one chunk.
SHARDED_ARRAYS = ("image_spaced", "label_spaced")
_AXES = {
    **{"image": 4, "label": 3, "label_native": 3},
    **{"image_spaced": 4, "label_spaced": 3, "foreground_spaced": 2},
}
# Edge of the chunks that boxes are read by, and how many of them at most go into one file.
BOX_CHUNK = 64
SHARD_CHUNKS = 512

Shape3D = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class SpacedArrays:
    """A case at the task's spacing, shapes and dtypes as in the module's docstring.

    `foreground_spaced` is sorted by label, then in C order.
    """

    image_spaced: npt.NDArray[np.float16]
    label_spaced: npt.NDArray[np.uint8]
    foreground_spaced: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class CaseArrays:
    """The arrays of one case, shapes and dtypes as in the module's docstring."""

    image: npt.NDArray[np.float16]
    label: npt.NDArray[np.uint8]
    label_native: npt.NDArray[np.uint8]
    spaced: SpacedArrays | None = None

    def named(self) -> dict[str, npt.NDArray[Any]]:
        """Array name in the store -> values."""
        named = {name: getattr(self, name) for name in ARRAYS}
        if self.spaced is not None:
            named |= {name: getattr(self.spaced, name) for name in SPACED_ARRAYS}
        return named


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
        spaced_shape: shape of `label_spaced`; None if the task has no arrays at its spacing.
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
    spaced_shape: Shape3D | None = None


@dataclass(frozen=True)
class Manifest:
    """What a task group holds; a case that is not listed here does not exist.

    Attributes:
        grid: D, H, W of `image` and `label`.
        split_seed: seed that decided the held-out test cases, which no statistic has seen.
        test_cases: those cases.
        normalisation: the scheme and the numbers that were applied.
        skipped: bad cases left out with `--skip-bad`, name -> reason.
        spacing_mm: the task's spacing along D, H, W; None if the store has no arrays at it.
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
    spacing_mm: Spacing | None = None

    @property
    def checksum(self) -> str:
        """Identity of the data on the grid: changes when an array, case, split or setting does.

        Paths, times and the order of writing do not count, so two conversions of the same files
        agree; nor does what version 2 added, so runs on the grid know their data again after
        `mvl migrate`.
        """
        return self._checksum(ARRAYS)

    @property
    def spaced_checksum(self) -> str:
        """Identity of all the data, that at the task's spacing included."""
        return self._checksum((*ARRAYS, *SPACED_ARRAYS), spacing_mm=self.spacing_mm)

    def nbytes(self, case: str, array: str, channels: int | None = None) -> int:
        """Bytes of an image, or of its first channels, or of a label, once it is decoded."""
        info = self.cases[case]
        kind, _, grid = array.partition("_")
        shape = {"": self.grid, "native": info.native_shape, "spaced": info.spaced_shape}[grid]
        if shape is None:
            raise ValueError(f"{case} has no {array}")
        bytes_a_voxel = {"image": 2 * (channels or len(self.task.modalities)), "label": 1}[kind]
        return math.prod(shape) * bytes_a_voxel

    def _checksum(self, arrays: Sequence[str], **more: Any) -> str:
        task = asdict(self.task)
        # Decides how a training changes the data, not what they are.
        del task["mirror_axes"]
        content = {
            # The arrays on the grid are those of version 1.
            "version": 1,
            "task": task,
            "grid": self.grid,
            "test": sorted(self.test_cases),
            "cases": {
                name: {array: case.arrays[array] for array in arrays if array in case.arrays}
                for name, case in sorted(self.cases.items())
            },
            **more,
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
        if fields.get("spaced_shape") is not None:
            fields["spaced_shape"] = tuple(fields["spaced_shape"])
        for key in ("affine", "source_affine"):
            fields[key] = tuple(tuple(row) for row in fields[key])
        cases[name] = CaseInfo(**fields)
    spacing = raw.get("spacing_mm")
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
        spacing_mm=None if spacing is None else tuple(spacing),
    )


def chunk_separator(array: str) -> str:
    """What stands between the numbers in the name of a chunk's file, or of a shard's."""
    return "." if array in SPACED_ARRAYS else "/"


def chunk_file(array: str) -> str:
    """File of an array's only chunk, or of its first shard, below its folder."""
    return chunk_separator(array).join(("c", *"0" * _AXES[array]))


def array_sha256(values: npt.NDArray[Any]) -> str:
    """Checksum of the decoded values: independent of codec and of chunking."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def regions_of(task: Task, target: str) -> Sequence[Region]:
    """The regions that a model marks, one mask each.

    `binary`: all labels merged; `labels`: one per label, which exclude each other; `regions`: those
    and the task's unions, which overlap.
    """
    if target == "binary":
        return (task.foreground,)
    unions = task.union_regions if target == "regions" else ()
    return (*task.label_regions, *unions)
