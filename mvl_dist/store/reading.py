"""The store's only reader."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError
from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import far_array, objects
from mvl_dist.store.chunk_mapping import mapped_again
from mvl_dist.store.chunk_reading import read_chunk_file
from mvl_dist.store.format import (
    DOCUMENT,
    MANIFEST,
    READABLE_VERSIONS,
    SHARDED_ARRAYS,
    STORE_VERSION,
    Manifest,
    chunk_file,
    manifest_from_json,
)
from mvl_dist.store.listing import task_names
from mvl_dist.store.seal import SEAL, seal_holds
from mvl_dist.store.shard_reading import FolderShards, ShardedArray, parse_sharded, read_sharded
from mvl_dist.tasks import TASKS, resolve_task_name

if TYPE_CHECKING:
    import numpy.typing as npt


def read_manifest(store: StorePlace, task: str) -> Manifest:
    """Return the manifest of a task; only file checks and JSON, so that mistakes show at once.

    Raises:
        UserError: no store, no such task in it, a store of another version, or a damaged manifest;
            a server that does not answer, or refuses.
    """
    if isinstance(store, RemotePlace):
        name, data = _remote_manifest(store, task)
    else:
        name, data = _local_manifest(store, task)
    path = store / name / MANIFEST
    try:
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


def _local_manifest(store: Path, task: str) -> tuple[str, bytes]:
    """Name of the task in full, and its manifest."""
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
    if name not in present:
        raise UserError(
            f"{name} is not in {store} (it holds {', '.join(present)}): run "
            f"'mvl convert --msd-root DIR --store {store} --tasks {name}'"
        )
    return name, (store / name / MANIFEST).read_bytes()


def _remote_manifest(store: RemotePlace, task: str) -> tuple[str, bytes]:
    """As `_local_manifest`, by one request if the name is whole or short for one of the ten."""
    name = task if re.fullmatch(r"Task\d+_\w+", task) else ""
    with contextlib.suppress(UserError):
        name = resolve_task_name(task)
    if name:
        with contextlib.suppress(FileNotFoundError):
            return name, objects.fetch_first(store / name / MANIFEST)
        if store.scheme in ("http", "https"):
            raise UserError(
                f"{store / name / MANIFEST}: missing: {name} was not converted into that store, or "
                "the address is not a store's"
            )
    present = task_names(store)
    known = tuple(dict.fromkeys((*present, *TASKS)))
    name = resolve_task_name(task, known) if present else task
    if name not in present:
        raise UserError(
            f"{name} is not in {store} (it holds {', '.join(present) or 'no converted task'}): "
            f"convert it into a folder and upload that, e.g. with 'aws s3 sync FOLDER {store}'"
        )
    return name, objects.fetch_first(store / name / MANIFEST)


def read_array(
    store: StorePlace,
    task: str,
    case: str,
    array: str,
    out: npt.NDArray[Any] | None = None,
    own: bool = False,
) -> npt.NDArray[Any]:
    """Read one array of a case whole, in C order.

    Args:
        out: what to read it into, of its shape and dtype and in C order.
        own: by its own zarr.json; from afar, an array on the grid is else read by that of the first
            case that this process read, which says the same.

    Raises:
        UserError: the array is missing, truncated or corrupt (crc32c), or not what `out` is made
            for, and names the case; a server that does not answer, or refuses.
    """
    begin_reading(store, task, [(case, array)])
    return _read(store, task, case, array, None, out, own)


def read_in_place(
    store: StorePlace, task: str, case: str, array: str, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """`read_array` of an array that is one chunk and is read in every epoch, on a node's own disk.

    One that lies there as it is, is mapped by this process when it is asked for again: it then
    costs half of what reading costs. Its checksum is checked by the first reading and by mapping.

    Args:
        out: what to read it into; a mapped one is returned as it is all the same.

    Raises:
        UserError: as `read_array`.
    """
    path = store / task / "cases" / case / array
    if isinstance(path, RemotePlace):
        return read_array(store, task, case, array, out)
    with _unreadable_is_a_user_error(store, path, case):
        values = mapped_again(path, chunk_file(array))
    return read_array(store, task, case, array, out) if values is None else values


# A case is asked for in every epoch, and never changes its encoding.
@functools.lru_cache(maxsize=2**16)
def stored_bytes(store: Path, task: str, case: str, array: str) -> int:
    """Bytes of the file of an array that is one chunk; 0 where that cannot be told: who reads it
    will say why.
    """
    try:
        return (store / task / "cases" / case / array / chunk_file(array)).stat().st_size
    except OSError:
        return 0


def begin_reading(
    store: StorePlace,
    task: str,
    whole: Sequence[tuple[str, str]],
    parts: Sequence[tuple[str, str]] = (),
) -> None:
    """Fetch what reads will need, in the background and at once; nothing for a folder.

    A case costs one round trip so, not one a file. Failures are met by the read.

    Args:
        whole: (case, array) that `read_array` will be asked for; of an array at the task's spacing
            its first shard comes, mostly the only one.
        parts: (case, array) at the task's spacing that `read_box` will be asked for.
    """
    if not isinstance(store, RemotePlace):
        return
    cases = store / task / "cases"
    wanted = []
    for case, array in whole:
        place = cases / case / array
        wanted += [*far_array.documents_of(place), place / chunk_file(array)]
    for case, array in parts:
        wanted += far_array.documents_of(cases / case / array)
    objects.begin(wanted)


def read_files(store: StorePlace, task: str, case: str, arrays: Sequence[str]) -> int:
    """Bring the files of arrays on the grid into memory, undecoded; returns their bytes.

    Raises:
        UserError: a server that does not answer, or refuses.
        FileNotFoundError: a case that is not whole.
    """
    folder = store / task / "cases" / case
    if isinstance(folder, RemotePlace):
        begin_reading(store, task, [(case, array) for array in arrays])
        return sum(len(objects.taken(folder / array / chunk_file(array))) for array in arrays)
    files = [file for array in arrays for file in (folder / array).rglob("*") if file.is_file()]
    return sum(len(file.read_bytes()) for file in files)


def read_box(
    store: StorePlace,
    task: str,
    case: str,
    array: str,
    box: tuple[slice, slice, slice],
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Read a part of an array, all its channels: `box` cuts the last three axes, D, H and W.

    Of an array at the task's spacing only the chunks that the box touches are read and checked.

    Args:
        out: what to read it into, of its shape and dtype, where that saves a copy; the result may
            lie elsewhere all the same.

    Raises:
        UserError: as `read_array`.
    """
    return _read(store, task, case, array, box, out)


def _read(
    store: StorePlace,
    task: str,
    case: str,
    array: str,
    box: tuple[slice, slice, slice] | None,
    out: npt.NDArray[Any] | None = None,
    own: bool = False,
) -> npt.NDArray[Any]:
    path = store / task / "cases" / case / array
    with _unreadable_is_a_user_error(store, path, case):
        if isinstance(path, RemotePlace):
            return far_array.read(path, array in SHARDED_ARRAYS, box, out, own)
        document = (path / DOCUMENT).read_bytes()
        if array in SHARDED_ARRAYS:
            return read_sharded(document, FolderShards(path), box, out)
        whole = out if box is None else None
        values = read_chunk_file(document, path, whole)
        return values if box is None else values[(..., *box)]


def read_parts(
    store: StorePlace, task: str, case: str, array: str
) -> tuple[tuple[int, ...], str, Iterator[npt.NDArray[Any]]]:
    """Read an array whole, with as little of it in memory at once as its chunks allow.

    Returns:
        Its shape, its dtype, and its values, part by part in C order, each valid until the next: a
        layer of chunks where that order allows (in a folder, of one channel), or all in one.

    Raises:
        UserError: as `read_array`, for a part when it is its turn.
    """
    path = store / task / "cases" / case / array
    if not isinstance(path, RemotePlace) and array in SHARDED_ARRAYS:
        with _unreadable_is_a_user_error(store, path, case):
            document = (path / DOCUMENT).read_bytes()
            layout = parse_sharded(document)
        if len(layout.shape) >= 3 and math.prod(layout.shape[:-3]) == 1:
            return layout.shape, layout.dtype, _layers(store, task, case, array, layout)
    whole = read_array(store, task, case, array, own=True)
    return whole.shape, whole.dtype.name, iter([whole])


def _layers(
    store: StorePlace, task: str, case: str, array: str, layout: ShardedArray
) -> Iterator[npt.NDArray[Any]]:
    import numpy as np

    *_, depth, height, width = layout.shape
    step = layout.chunk[-3]
    layer = np.empty((*layout.shape[:-3], min(step, depth), height, width), layout.dtype)
    for start in range(0, depth, step):
        box = (slice(start, min(start + step, depth)), slice(height), slice(width))
        yield _read(store, task, case, array, box, layer[..., : depth - start, :, :])


@contextlib.contextmanager
def _unreadable_is_a_user_error(store: StorePlace, path: StorePlace, case: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read whole ({type(error).__name__}: {error}): "
            f"run 'mvl verify --store {store}', delete the case's folder and convert again, or "
            f"train without it: --leave-out {case}"
        ) from error
