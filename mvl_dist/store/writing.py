"""The store's only writer: a case or a manifest is there whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvl_dist.files import PARTIAL, full_disk_is_a_user_error, write_text_atomically
from mvl_dist.store.format import ARRAYS, MANIFEST, CaseArrays, Manifest, array_sha256


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
