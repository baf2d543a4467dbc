"""The store's only writer: a case or a manifest is there whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvl_dist.files import (
    PARTIAL,
    full_disk_is_a_user_error,
    sha256_of,
    write_text_atomically,
)
from mvl_dist.place import StorePlace
from mvl_dist.store.array_writing import write_array
from mvl_dist.store.format import (
    BOX_CHUNK,
    DOCUMENT,
    MANIFEST,
    SHARD_CHUNKS,
    SHARDED_ARRAYS,
    CaseArrays,
    Manifest,
    array_sha256,
    chunk_separator,
)
from mvl_dist.store.listing import read_bytes
from mvl_dist.store.seal import SEAL, seal_holds, sealed_json, sealed_text


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
            checksums of the arrays' values (key `arrays`), of their zarr.json (`metadata`) and of
            their other files (`files`).

    Raises:
        UserError: the disk is full or not writable. Whatever was written is removed.
    """
    final = store / task / "cases" / name
    partial = final.with_name(f"{PARTIAL}{name}-{uuid.uuid4().hex[:8]}")
    named = arrays.named()
    checksums = {key: array_sha256(values) for key, values in named.items()}
    try:
        with full_disk_is_a_user_error(store):
            partial.mkdir()
            files = {}
            for key, values in named.items():
                # In one folder, not in one an axis: each folder is an inode too.
                separator = chunk_separator(key)
                layout = _chunk_and_shard(key, values.shape)
                files[key] = write_array(partial / key, values, *layout, separator)
            sums = {"arrays": checksums, "metadata": array_metadata(partial), "files": files}
            (partial / DOCUMENT).write_text(case_text({**attributes, **sums}))
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return checksums


def _chunk_and_shard(
    key: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    if key not in SHARDED_ARRAYS:
        return tuple(max(1, size) for size in shape), None
    channels, box = shape[:-3], shape[-3:]
    d, h, w = (-(-size // BOX_CHUNK) for size in box)
    # Shards along D of equal height, as few as hold SHARD_CHUNKS each.
    deep = -(-d // -(-d // max(1, SHARD_CHUNKS // (h * w))))
    shards = tuple(count * BOX_CHUNK for count in (deep, h, w))
    return (*channels, *(BOX_CHUNK,) * 3), (*channels, *shards)


def array_metadata(case: Path) -> dict[str, str]:
    """Array name -> sha256 of its zarr.json, of a case's folder."""
    return {path.parent.name: sha256_of(path) for path in sorted(case.glob(f"*/{DOCUMENT}"))}


def case_text(attributes: Mapping[str, Any]) -> str:
    """The zarr.json of a case's group, with its seal among the attributes."""
    return sealed_text(
        lambda seal: json.dumps(
            {"attributes": {SEAL: seal, **attributes}, "zarr_format": 3, "node_type": "group"},
            indent=2,
        )
    )


def read_case_attributes(store: StorePlace, task: str, name: str) -> dict[str, Any] | None:
    """Attributes of a case that was renamed into place, or None; does not need the manifest.

    None also where the file is damaged or of store version 1: such a case is converted again.
    """
    try:
        data = read_bytes(store / task / "cases" / name / DOCUMENT)
        attributes = dict(json.loads(data)["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return attributes if seal_holds(data, attributes.get(SEAL)) else None


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Publish a task: the last step of a conversion."""
    path = store / manifest.task.name / MANIFEST
    write_text_atomically(path, sealed_json(asdict(manifest)))


def withdraw_manifest(store: Path, task: str) -> None:
    """Unpublish a task before cases that it lists are replaced."""
    (store / task / MANIFEST).unlink(missing_ok=True)
