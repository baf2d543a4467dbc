"""The store's only reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError
from mvl_dist.store.format import MANIFEST, STORE_VERSION, Manifest, manifest_from_json
from mvl_dist.tasks import TASKS, resolve_task_name

if TYPE_CHECKING:
    import numpy.typing as npt


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
        return manifest_from_json(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a manifest of this program ({type(error).__name__}: {error}): "
            f"delete {path.parent} and convert again"
        ) from error


def read_array(store: Path, task: str, case: str, array: str) -> npt.NDArray[Any]:
    """Read one array of a case whole, in C order.

    Raises:
        UserError: the array is missing, truncated or corrupt (crc32c); names the case.
    """
    return _read(store, task, case, array, ...)


def read_box(
    store: Path, task: str, case: str, array: str, box: tuple[slice, slice, slice]
) -> npt.NDArray[Any]:
    """Read a part of an array, all its channels: `box` cuts the last three axes, D, H and W.

    Only the chunks that the box touches are read and checked.

    Raises:
        UserError: as `read_array`.
    """
    return _read(store, task, case, array, (..., *box))


def _read(store: Path, task: str, case: str, array: str, part: Any) -> npt.NDArray[Any]:
    import zarr

    path = store / task / "cases" / case / array
    try:
        there = zarr.open_array(path, mode="r")
        if not (path / "c" / "/".join("0" * there.ndim)).is_file():
            # Zarr would fill a missing chunk with zeros: a lost label would read as empty.
            raise FileNotFoundError("its chunk file is missing")
        return there[part]  # type: ignore[return-value]
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read whole ({type(error).__name__}: {error}): "
            f"run 'mvl verify --store {store}', delete the case's folder and convert again, or "
            f"train without it: --leave-out {case}"
        ) from error
