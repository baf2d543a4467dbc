"""`mvl verify`: read every file of a store and compare it with its checksum.

The manifest and each case's zarr.json carry a checksum of themselves; the latter holds those of its
arrays' zarr.json, and the manifest those of the arrays' values. Every chunk and every shard's index
is closed by a crc32c. So a flipped bit in any file is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_prep.case import STATISTICS
from mvl_dist import store as zarr_store
from mvl_dist.config import StoreFlag
from mvl_dist.errors import UserError
from mvl_dist.parallel import default_workers, run_cases
from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import CaseInfo, Manifest, seal_holds
from mvl_dist.tasks import resolve_task_name


@dataclass(frozen=True)
class VerifyOptions:
    """Read every file of a store and compare it with its checksum."""

    store: StoreFlag
    """Folder or address of the store."""
    tasks: tuple[str, ...] = ()
    """Task04_Hippocampus, Task04 or 04; all in the store if none is given."""
    workers: int = 0
    """Processes; 0 takes one a CPU core."""


@dataclass(frozen=True)
class _Case:
    store: StorePlace
    manifest: Manifest
    info: CaseInfo


@dataclass(frozen=True)
class _Checked:
    problems: tuple[str, ...]
    bytes: int


def _check_case(case: _Case) -> _Checked:
    manifest, name = case.manifest, case.info.name
    folder = case.store / manifest.task.name / "cases" / name
    problems = []
    size = 0
    expected = _expected_arrays(manifest, case.info)
    listed = [*expected, "zarr.json"]
    names = zarr_store.names_in(folder) if _tells_names(case.store) else listed
    if not names:
        problems.append("missing: convert again")
    else:
        strange = [name for name in names if name not in listed]
        problems += [f"{name} does not belong there: delete it" for name in strange]
        sums, wrong = _check_metadata(folder, case)
        problems += wrong
        for array, (shape, dtype) in expected.items():
            problem, bytes_read = _check_array(case, array, shape, dtype, sums)
            problems += [f"{array}: {problem}"] if problem else []
            size += bytes_read
    where = f"{manifest.task.name}: case {name}"
    return _Checked(tuple(f"{where}: {problem}" for problem in problems), size)


def _expected_arrays(
    manifest: Manifest, info: CaseInfo
) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Array name -> shape (None: any length) and dtype."""
    channels = len(manifest.task.modalities)
    expected: dict[str, tuple[tuple[int | None, ...], str]] = {
        "image": ((channels, *manifest.grid), "float16"),
        "label": (manifest.grid, "uint8"),
        "label_native": (info.native_shape, "uint8"),
    }
    if info.spaced_shape is not None:
        expected |= {
            "image_spaced": ((channels, *info.spaced_shape), "float16"),
            "label_spaced": (info.spaced_shape, "uint8"),
            "foreground_spaced": ((None, 4), "uint16"),
        }
    return expected


def _check_metadata(folder: StorePlace, case: _Case) -> tuple[Mapping[str, str], list[str]]:
    """Check a case's zarr.json; returns the sums that it holds of its arrays' zarr.json."""
    document = _parsed(folder / "zarr.json")
    attributes = document.get("attributes", {})
    task, name = case.manifest.task.name, case.info.name
    sealed = zarr_store.read_case_attributes(case.store, task, name)
    if sealed is None and (case.manifest.version > 1 or zarr_store.SEAL in attributes):
        return {}, ["zarr.json: damaged, its checksum differs from its content"]
    info = json.loads(json.dumps(asdict(case.info)))
    arrays = info.pop("arrays")
    if sealed is None:  # version 1, which had no such field
        del info["spaced_shape"]
    same = (
        _is_group(document)
        and attributes.get("info") == info
        and attributes.get("arrays") == arrays
        and attributes.get("normalisation") == case.manifest.normalisation
    )
    wrong = [] if same else ["zarr.json: differs from the manifest"]
    return attributes.get("metadata", {}), wrong


def _check_array(
    case: _Case,
    array: str,
    shape: tuple[int | None, ...],
    dtype: str,
    sums: Mapping[str, str],
) -> tuple[str, int]:
    """What is wrong with an array, or nothing; and the bytes read."""
    task, name = case.manifest.task.name, case.info.name
    metadata = case.store / task / "cases" / name / array / "zarr.json"
    if array in sums:
        # A missing one is met by the read.
        with contextlib.suppress(FileNotFoundError):
            if hashlib.sha256(zarr_store.read_bytes(metadata)).hexdigest() != sums[array]:
                return "zarr.json: damaged, its checksum differs from the case's", 0
    size = 0
    try:
        there, kind, parts = zarr_store.read_parts(case.store, task, name, array)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.data)
            size += part.nbytes
    except UserError as error:
        return str(error), size
    fits = len(shape) == len(there) and all(
        wanted in (None, length) for wanted, length in zip(shape, there, strict=True)
    )
    if not fits or kind != dtype:
        should = ", ".join("N" if length is None else str(length) for length in shape)
        return f"is {kind} {there}, should be {dtype} ({should})", size
    if digest.hexdigest() != case.info.arrays.get(array):
        return "its checksum differs from the manifest's", size
    return "", size


def _parsed(path: StorePlace) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none."""
    try:
        document = json.loads(zarr_store.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_group(document: Mapping[str, Any]) -> bool:
    return {"attributes", "zarr_format", "node_type"} == set(document) and (
        document["zarr_format"],
        document["node_type"],
    ) == (3, "group")


def _check_groups(paths: Sequence[StorePlace]) -> Iterator[str]:
    """The zarr.json of groups above the cases: they have no attributes, so all of it is known."""
    for path in paths:
        document = _parsed(path)
        if not _is_group(document) or document["attributes"]:
            yield f"{path}: is damaged: delete it and run the same 'mvl convert' again"


def _check_statistics(folder: StorePlace) -> Iterator[str]:
    """What CT statistics were summed from: a wrong count would change them in the next run."""
    for name in zarr_store.names_in(folder):
        path = folder / name
        if not name.endswith(".json"):
            continue
        if not seal_holds(zarr_store.read_bytes(path), _parsed(path).get(zarr_store.SEAL)):
            yield f"{path}: damaged, its checksum differs from its content: delete it"


def _leftovers(store: StorePlace, task: str, listed: frozenset[str]) -> Iterator[str]:
    """Whatever lies in a task's folder without being listed."""
    known = {"zarr.json", zarr_store.MANIFEST, "cases", STATISTICS}
    for name in zarr_store.names_in(store / task):
        if name not in known:
            yield f"{task}: {name} does not belong there: delete it"
    for name in zarr_store.names_in(store / task / "cases"):
        if name.startswith("."):
            yield f"{task}: {name} was left by a stopped conversion: run it again"
        elif name not in listed and name != "zarr.json":
            yield f"{task}: case {name} is not in the manifest: delete it"


def _tells_names(store: StorePlace) -> bool:
    """A web server hands out files and lists none: what lies beside them stays unknown."""
    return not (isinstance(store, RemotePlace) and store.scheme in ("http", "https"))


def verify_task(store: StorePlace, task: str, workers: int) -> tuple[list[str], int, int]:
    """Check one published task; returns its problems, the number of cases and of bytes read.

    Raises:
        UserError: no readable manifest.
    """
    manifest = zarr_store.read_manifest(store, task)
    # A process is sent the manifest without the other cases.
    alone = replace(manifest, cases={})
    cases = [_Case(store, alone, info) for info in manifest.cases.values()]
    problems: list[str] = []
    size = 0
    for checked in run_cases(_check_case, cases, workers or default_workers(), f"{task}: verify"):
        problems += checked.problems
        size += checked.bytes
    problems += _check_groups([store / task / "zarr.json", store / task / "cases" / "zarr.json"])
    if _tells_names(store):
        problems += _leftovers(store, task, frozenset(manifest.cases))
    if manifest.version > 1 and _tells_names(store):
        problems += _check_statistics(store / task / STATISTICS)
    return sorted(problems), len(cases), size


def _wanted(options: VerifyOptions) -> tuple[list[str], tuple[str, ...]]:
    """Names in full of the tasks to check, and which tasks of the store were not completed."""
    if options.tasks and not _tells_names(options.store):
        found = [zarr_store.read_manifest(options.store, name) for name in options.tasks]
        return [manifest.task.name for manifest in found], ()
    present = zarr_store.task_names(options.store)
    unpublished = zarr_store.unpublished_names(options.store)
    known = (*present, *unpublished)
    if not known:
        zarr_store.read_manifest(options.store, "Task04_Hippocampus")  # says what to do
    return [resolve_task_name(name, known) for name in options.tasks] or list(known), unpublished


def main(argv: list[str]) -> int:
    """Entry of `mvl verify; 1 if anything is wrong."""
    import tyro  # slow to import, and needed by the command line only

    options = tyro.cli(VerifyOptions, prog="mvl verify", args=argv)
    wanted, unpublished = _wanted(options)
    failures = list(_check_groups([options.store / "zarr.json"]))
    for task in wanted:
        if task in unpublished:
            failures.append(
                f"{task}: has no manifest, its conversion was not completed: run it again"
            )
            continue
        try:
            problems, cases, size = verify_task(options.store, task, options.workers)
        except UserError as error:  # a damaged manifest; the other tasks are still looked at
            failures.append(f"{task}: {error}")
            continue
        verdict = f"{len(problems)} problems" if problems else "all as the manifest says"
        print(f"{task}: {cases} cases, {size / 1e6:.1f} MB of arrays read: {verdict}")
        failures += problems
    for failure in failures:
        print(failure, flush=True)
    return 1 if failures else 0
