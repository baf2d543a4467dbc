"""`mvl verify`: read every array of the store and compare it with the manifest's checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.case import STATISTICS
from mvl_dist import store as zarr_store
from mvl_dist.errors import UserError
from mvl_dist.parallel import default_workers, run_cases
from mvl_dist.store import CaseInfo, Shape3D
from mvl_dist.tasks import resolve_task_name


@dataclass(frozen=True)
class VerifyOptions:
    """Read every array of a store and compare it with the checksum in the manifest."""

    store: Path
    """Folder of the store."""
    tasks: tuple[str, ...] = ()
    """Task04_Hippocampus, Task04 or 04; all in the store if none is given."""
    workers: int = 0
    """Processes; 0 takes one a CPU core."""


@dataclass(frozen=True)
class _Case:
    store: Path
    task: str
    grid: Shape3D
    channels: int
    info: CaseInfo


@dataclass(frozen=True)
class _Checked:
    problems: tuple[str, ...]
    bytes: int


def _check_case(case: _Case) -> _Checked:
    expected = {
        "image": ((case.channels, *case.grid), "float16"),
        "label": (case.grid, "uint8"),
        "label_native": (case.info.native_shape, "uint8"),
    }
    problems, size = [], 0
    where = f"{case.task}: case {case.info.name}"
    for array, (shape, dtype) in expected.items():
        try:
            values = zarr_store.read_array(case.store, case.task, case.info.name, array)
        except UserError as error:
            problems.append(f"{where}: {array}: {error}")
            continue
        size += values.nbytes
        if values.shape != tuple(shape) or values.dtype != dtype:
            problems.append(
                f"{where}: {array}: is {values.dtype} {values.shape}, should be {dtype} {shape}"
            )
        elif zarr_store.array_sha256(values) != case.info.arrays.get(array):
            problems.append(f"{where}: {array}: its checksum differs from the manifest's")
    return _Checked(tuple(problems), size)


def _leftovers(store: Path, task: str, listed: frozenset[str]) -> Iterator[str]:
    """Whatever lies in a task's folder without being listed."""
    known = {"zarr.json", zarr_store.MANIFEST, "cases", STATISTICS}
    for path in sorted((store / task).iterdir()):
        if path.name not in known:
            yield f"{task}: {path.name} does not belong there: delete it"
    for path in sorted((store / task / "cases").iterdir()):
        if path.name.startswith("."):
            yield f"{task}: {path.name} was left by a stopped conversion: run it again"
        elif path.name not in listed and path.name != "zarr.json":
            yield f"{task}: case {path.name} is not in the manifest: delete it"


def _unpublished(store: Path) -> list[str]:
    return sorted(
        path.parent.name
        for path in store.glob("*/cases")
        if not (path.parent / zarr_store.MANIFEST).exists()
    )


def verify_task(store: Path, task: str, workers: int) -> tuple[list[str], int, int]:
    """Check one published task; returns its problems, the number of cases and of bytes read.

    Raises:
        UserError: no readable manifest.
    """
    manifest = zarr_store.read_manifest(store, task)
    channels = len(manifest.task.modalities)
    cases = [_Case(store, task, manifest.grid, channels, info) for info in manifest.cases.values()]
    problems: list[str] = []
    size = 0
    for checked in run_cases(_check_case, cases, workers or default_workers(), f"{task}: verify"):
        problems += checked.problems
        size += checked.bytes
    problems += _leftovers(store, task, frozenset(manifest.cases))
    return sorted(problems), len(cases), size


def main(argv: list[str]) -> int:
    """Entry of `mvl verify`; 1 if anything is wrong."""
    import tyro  # slow to import, and needed by the command line only

    options = tyro.cli(VerifyOptions, prog="mvl verify", args=argv)
    present = zarr_store.task_names(options.store)
    unpublished = _unpublished(options.store)
    known = (*present, *unpublished)
    if not known:
        zarr_store.read_manifest(options.store, "Task04_Hippocampus")  # says what to do
    wanted = [resolve_task_name(name, known) for name in options.tasks] or list(known)
    failures = 0
    for task in wanted:
        if task in unpublished:
            problems = [f"{task}: has no manifest, its conversion was not completed: run it again"]
        else:
            problems, cases, size = verify_task(options.store, task, options.workers)
            verdict = f"{len(problems)} problems" if problems else "all as the manifest says"
            print(f"{task}: {cases} cases, {size / 1e6:.1f} MB of arrays read: {verdict}")
        for problem in problems:
            print(problem, flush=True)
        failures += len(problems)
    return 1 if failures else 0
