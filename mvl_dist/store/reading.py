"""The store's only reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError
from mvl_dist.store.format import (
    MANIFEST,
    READABLE_VERSIONS,
    SHARDED_ARRAYS,
    STORE_VERSION,
    Manifest,
    manifest_from_json,
)
from mvl_dist.store.seal import SEAL, seal_holds
from mvl_dist.store.shard_reading import FolderShards, read_sharded
from mvl_dist.tasks import TASKS, resolve_task_name

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr


def task_names(store: Path) -> tuple[str, ...]:
    """Names of the tasks whose conversion was completed."""
    return tuple(sorted(path.parent.name for path in store.glob(f"*/{MANIFEST}")))


def read_manifest(store: Path, task: str) -> Manifest:
    """Return the manifest of a task; only file checks and JSON, so that mistakes show at once.

    Raises:
        UserError: no store, no such task in it, a store of another version, or a damaged manifest.
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
        data = path.read_bytes()
        raw = json.loads(data)
        version, seal = raw["version"], raw.get(SEAL)
        if version not in READABLE_VERSIONS:
            raise UserError(
                f"{path}: store version {version}, this program reads up to {STORE_VERSION}: "
                f"convert again into a new folder with 'mvl convert'"
            )
        if not seal_holds(data, seal) and (version > 1 or seal is not None):
            raise ValueError("its checksum differs from its content")
        return manifest_from_json(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or not a manifest of this program ({type(error).__name__}: "
            f"{error}): delete this file and run the same 'mvl convert' again, which keeps every "
            "whole case"
        ) from error


def read_array(store: Path, task: str, case: str, array: str) -> npt.NDArray[Any]:
    """Read one array of a case whole, in C order.

    Raises:
        UserError: the array is missing, truncated or corrupt (crc32c); names the case.
    """
    return _read(store, task, case, array, None)


def read_box(
    store: Path, task: str, case: str, array: str, box: tuple[slice, slice, slice]
) -> npt.NDArray[Any]:
    """Read a part of an array, all its channels: `box` cuts the last three axes, D, H and W.

    Of an array at the task's spacing only the chunks that the box touches are read and checked.

    Raises:
        UserError: as `read_array`.
    """
    return _read(store, task, case, array, box)


def _read(
    store: Path, task: str, case: str, array: str, box: tuple[slice, slice, slice] | None
) -> npt.NDArray[Any]:
    import zarr

    path = store / task / "cases" / case / array
    try:
        if array in SHARDED_ARRAYS:
            return read_sharded((path / "zarr.json").read_bytes(), FolderShards(path), box)
        there = zarr.open_array(path, mode="r")
        _require_chunk(path, there)
        return there[... if box is None else (..., *box)]  # type: ignore[return-value]
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read whole ({type(error).__name__}: {error}): "
            f"run 'mvl verify --store {store}', delete the case's folder and convert again, or "
            f"train without it: --leave-out {case}"
        ) from error


def _require_chunk(path: Path, array: zarr.Array[Any]) -> None:
    """Zarr would fill a missing chunk with zeros: a lost label would read as empty."""
    if array.shape == array.chunks:
        if not (path / array.metadata.encode_chunk_key((0,) * array.ndim)).is_file():
            raise FileNotFoundError("its chunk file is missing")
    elif array.size:  # a list of no voxels has no chunk
        raise ValueError(f"is not one chunk: {array.chunks} of {array.shape}")
