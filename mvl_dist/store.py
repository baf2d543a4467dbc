"""The Zarr store: its format, its only writer, its only reader.

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
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, full_disk_is_a_user_error, write_text_atomically
from mvl_dist.tasks import TASKS, Region, Task, resolve_task_name, task_from_plain

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


# ---------------------------------------------------------------------------------------- reading


def task_names(store: Path) -> tuple[str, ...]:
    """Names of the tasks whose conversion was completed."""
    return tuple(sorted(path.parent.name for path in store.glob(f"*/{MANIFEST}")))


def read_manifest(store: Path, task: str) -> Manifest:
    """Return the manifest of a task; only file checks and JSON, so that mistakes show at once.

    Raises:
        UserError: no store, no such task in it, or a store of another version.
    """
    if not store.is_dir():
        raise UserError(
            f"no store at {store}: make one with "
            f"'mvl convert --msd-root DIR --store {store} --tasks {task}'"
        )
    present = task_names(store)
    if not present:
        raise UserError(
            f"{store} holds no converted task: run "
            f"'mvl convert --msd-root DIR --store {store} --tasks {task}'"
        )
    name = resolve_task_name(task, tuple(dict.fromkeys((*present, *TASKS))))
    path = store / name / MANIFEST
    if not path.exists():
        raise UserError(
            f"{name} is not in {store} (it holds {', '.join(present)}): run "
            f"'mvl convert --msd-root DIR --store {store} --tasks {name}'"
        )
    try:
        raw = json.loads(path.read_text())
        if raw["version"] != STORE_VERSION:
            raise UserError(
                f"{path}: store version {raw['version']}, this program reads {STORE_VERSION}: "
                f"convert again into a new folder with 'mvl convert'"
            )
        return _manifest_from_json(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a manifest of this program ({type(error).__name__}: {error}): "
            f"delete {path.parent} and convert again"
        ) from error


def _manifest_from_json(raw: dict[str, Any]) -> Manifest:
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


def read_array(store: Path, task: str, case: str, array: str) -> npt.NDArray[Any]:
    """Read one array of a case whole, in C order.

    Raises:
        UserError: the array is missing, truncated or corrupt (crc32c); names the case.
    """
    import zarr

    path = store / task / "cases" / case / array
    try:
        group = zarr.open_array(path, mode="r")
        if not (path / "c" / "/".join("0" * group.ndim)).is_file():
            # Zarr would fill a missing chunk with zeros: a lost label would read as empty.
            raise FileNotFoundError("its chunk file is missing")
        return group[...]  # type: ignore[return-value]
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read whole ({type(error).__name__}: {error}): "
            f"run 'mvl verify --store {store}', delete the case's folder and convert again, or "
            f"train without it: --leave-out {case}"
        ) from error


def array_sha256(values: npt.NDArray[Any]) -> str:
    """Checksum of the decoded values: independent of codec and of chunking."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


# ---------------------------------------------------------------------------------------- writing


def create_task_group(store: Path, task: str) -> Path:
    """Make STORE and STORE/TASK as Zarr groups if they are not there; return the task's folder.

    Left-overs of a killed conversion are removed: they were never renamed into place.
    """
    import zarr

    with full_disk_is_a_user_error(store):
        zarr.open_group(store, mode="a", zarr_format=3)
        zarr.open_group(store / task, mode="a", zarr_format=3)
        zarr.open_group(store / task / "cases", mode="a", zarr_format=3)
    for partial in [
        *(store / task).glob(f"{PARTIAL}*"),
        *(store / task / "cases").glob(f"{PARTIAL}*"),
    ]:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    return store / task


def write_case(
    store: Path, task: str, name: str, arrays: CaseArrays, attributes: Mapping[str, Any]
) -> dict[str, str]:
    """Write a case beside its place, then rename it there; return each array's sha256.

    Args:
        attributes: JSON-serialisable; stored as the case group's Zarr attributes together with
            the checksums (key `arrays`).

    Raises:
        UserError: the disk is full or not writable. Whatever was written is removed.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    final = store / task / "cases" / name
    partial = final.with_name(f"{PARTIAL}{name}-{uuid.uuid4().hex[:8]}")
    checksums = {key: array_sha256(getattr(arrays, key)) for key in ARRAYS}
    try:
        with full_disk_is_a_user_error(store):
            group = zarr.open_group(partial, mode="w", zarr_format=3)
            for key in ARRAYS:
                values = getattr(arrays, key)
                array = group.create_array(
                    key,
                    shape=values.shape,
                    chunks=values.shape,
                    dtype=values.dtype,
                    compressors=[
                        BloscCodec(
                            cname="lz4", clevel=5, shuffle="shuffle", typesize=values.itemsize
                        ),
                        Crc32cCodec(),
                    ],
                    # An all-background label must exist on disk, or a lost one could pass for it.
                    config={"write_empty_chunks": True},
                )
                array[...] = values
            group.attrs.put({**attributes, "arrays": checksums})
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return checksums


def read_case_attributes(store: Path, task: str, name: str) -> dict[str, Any] | None:
    """Attributes of a case that was renamed into place, or None; does not need the manifest."""
    try:
        raw = json.loads((store / task / "cases" / name / "zarr.json").read_text())
        return dict(raw["attributes"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Publish a task: the last step of a conversion."""
    text = json.dumps(asdict(manifest), indent=1)
    write_text_atomically(store / manifest.task.name / MANIFEST, text)


def withdraw_manifest(store: Path, task: str) -> None:
    """Unpublish a task before cases that it lists are replaced."""
    (store / task / MANIFEST).unlink(missing_ok=True)


def regions_of(task: Task, target: str) -> Sequence[Region]:
    """The regions that a model marks, one mask each.

    `binary`: all labels merged; `labels`: one per label, which exclude each other; `regions`: those
    and the task's unions, which overlap.
    """
    if target == "binary":
        return (task.foreground,)
    unions = task.union_regions if target == "regions" else ()
    return (*task.label_regions, *unions)
