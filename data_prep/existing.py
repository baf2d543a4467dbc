"""What a store has already of a task that is to be converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvl_dist import store as zarr_store
from mvl_dist.errors import UserError
from mvl_dist.store import Manifest
from mvl_dist.tasks import Task


def converted_names(store: Path, task: str) -> list[str]:
    """Cases of a task that were renamed into place."""
    return sorted(
        path.parent.name
        for path in (store / task / "cases").glob("*/zarr.json")
        if not path.parent.name.startswith(".")
    )


def completed(store: Path, task: Task, settings: dict[str, Any]) -> Manifest | None:
    """The task's manifest if its conversion was completed.

    Raises:
        UserError: a store of another version, or made with other settings.
    """
    manifest = None
    if (store / task.name / zarr_store.MANIFEST).exists():
        manifest = zarr_store.read_manifest(store, task.name)
        if manifest.version != zarr_store.STORE_VERSION:
            raise UserError(
                f"{store / task.name} is of store version {manifest.version}: bring it to "
                f"{zarr_store.STORE_VERSION} with 'mvl migrate --store {store}', or replace it "
                "with --overwrite"
            )
    for name in converted_names(store, task.name):
        attributes = zarr_store.read_case_attributes(store, task.name, name)
        if attributes is None:
            continue
        there = attributes["settings"]
        differing = [
            f"{key} {there.get(key)} there, {wanted} asked for"
            for key, wanted in settings.items()
            # Arrays at a spacing may come to cases that have none: the others stay as they are.
            if there.get(key) != wanted and (key, there.get(key)) != ("spacing", "none")
        ]
        if differing:
            raise UserError(
                f"{store / task.name} was converted with other settings ({'; '.join(differing)}): "
                "choose another --store, or replace it with --overwrite"
            )
        break
    return manifest
