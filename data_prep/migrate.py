"""`mvl migrate`: bring a store to this program's version, without its sources.

Version 1 to 2: checksums come into each case's zarr.json, into what CT statistics were summed from
and into the manifest; no array is touched. Each file is replaced in one step and the manifest comes
last, so whatever stops it leaves a store that reads as before, and the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.case import STATISTICS
from mvl_dist import store as zarr_store
from mvl_dist.config import FolderFlag
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, write_text_atomically
from mvl_dist.store import CaseInfo
from mvl_dist.tasks import resolve_task_name


@dataclass(frozen=True)
class MigrateOptions:
    """Bring a store to this program's version. Arrays stay as they are, and so do the names of runs
    that were trained on them."""

    store: FolderFlag
    """Folder of the store."""
    tasks: tuple[str, ...] = ()
    """Task04_Hippocampus, Task04 or 04; all in the store if none is given."""


def _settings(old: Mapping[str, Any]) -> dict[str, Any]:
    return {**old, "store version": zarr_store.STORE_VERSION, "spacing": "none"}


def _migrate_case(folder: Path, info: CaseInfo) -> None:
    """Give a case's zarr.json what version 2 has there; one that has it is left alone.

    Raises:
        UserError: it is not as the manifest says, so a checksum would hide the damage.
    """
    try:
        attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
        if zarr_store.SEAL in attributes:
            return
        expected = json.loads(json.dumps(asdict(info)))
        arrays = expected.pop("arrays")
        del expected["spaced_shape"]
        sound = (attributes["info"], attributes["arrays"]) == (expected, arrays)
        content = {
            "settings": _settings(attributes["settings"]),
            "normalisation": attributes["normalisation"],
            "spacing_mm": None,
            "info": {**attributes["info"], "spaced_shape": None},
            "arrays": attributes["arrays"],
            "metadata": zarr_store.array_metadata(folder),
        }
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound or sorted(content["metadata"]) != sorted(zarr_store.ARRAYS):
        raise UserError(
            f"{folder}: missing, damaged, or not as the manifest says: nothing of it was changed; "
            "look with 'mvl verify', then convert the task again into another --store"
        )
    write_text_atomically(folder / "zarr.json", zarr_store.case_text(content))


def _migrate_statistics(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            if zarr_store.SEAL in content:
                continue
            settings = _settings(content["settings"])
            del settings["spacing"]  # a histogram does not depend on it
            sealed = zarr_store.sealed_json({**content, "settings": settings})
        except (ValueError, KeyError, TypeError):
            path.unlink()  # the next conversion counts this case again
            continue
        write_text_atomically(path, sealed)


def migrate_task(store: Path, task: str) -> str:
    """Bring one published task to this program's store version; returns a line for the person.

    Raises:
        UserError: no readable manifest, a case that is not as it says, or a disk that is full or
            read-only. The task still reads as before.
    """
    manifest = zarr_store.read_manifest(store, task)
    if manifest.version == zarr_store.STORE_VERSION:
        return f"{task}: is of store version {manifest.version} already"
    for partial in (store / task).rglob(f"{PARTIAL}*"):
        partial.unlink()  # left by a migration that was killed
    for name, info in manifest.cases.items():
        _migrate_case(store / task / "cases" / name, info)
    _migrate_statistics(store / task / STATISTICS)
    zarr_store.write_manifest(store, replace(manifest, version=zarr_store.STORE_VERSION))
    return (
        f"{task}: {len(manifest.cases)} cases brought from store version {manifest.version} to "
        f"{zarr_store.STORE_VERSION}; arrays at the task's own spacing come with the 'mvl convert' "
        "that made it, run again"
    )


def main(argv: list[str]) -> int:
    """Entry of `mvl migrate`."""
    import tyro  # slow to import, and needed by the command line only

    options = tyro.cli(MigrateOptions, prog="mvl migrate", args=argv)
    present = zarr_store.task_names(options.store)
    if not present:
        zarr_store.read_manifest(options.store, "Task04_Hippocampus")  # says what to do
    for name in options.tasks or present:
        print(migrate_task(options.store, resolve_task_name(name, present)), flush=True)
    return 0
