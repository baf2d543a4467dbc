"""`mvl verify`: read every file of a store and compare it with its checksum.

The manifest and each case's zarr.json carry a checksum of themselves; both hold those of the
arrays' values, and the latter those of all the other files of the case. So a flipped bit in any
file is found without decoding anything. Where that finds something, where it is asked for, and in
a case that was written before files had checksums, arrays are decoded: then the crc32c that closes
every chunk and every shard's index says what is wrong, or the checksum of the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_prep.case import STATISTICS
from data_prep.verify_case import CaseToVerify, is_group, parsed, tells_names, verify_case
from mvl_dist import store as zarr_store
from mvl_dist.config import StoreFlag
from mvl_dist.errors import UserError
from mvl_dist.parallel import default_workers, run_cases
from mvl_dist.place import StorePlace
from mvl_dist.store import seal_holds
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
    decode: bool = False
    """Decode every array too, and compare its values with the manifest."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a task, and what was looked at.

    Attributes:
        read: bytes of the arrays' files that were compared with their checksums.
        decoded: bytes of the arrays whose values were.
    """

    problems: tuple[str, ...]
    cases: int
    read: int
    decoded: int


def _check_groups(paths: Sequence[StorePlace]) -> Iterator[str]:
    """The zarr.json of groups above the cases: they have no attributes, so all of it is known."""
    for path in paths:
        document = parsed(path)
        if not is_group(document) or document["attributes"]:
            yield f"{path}: is damaged: delete it and run the same 'mvl convert' again"


def _check_statistics(folder: StorePlace) -> Iterator[str]:
    """What CT statistics were summed from: a wrong count would change them in the next run."""
    for name in zarr_store.names_in(folder):
        path = folder / name
        if not name.endswith(".json"):
            continue
        if not seal_holds(zarr_store.read_bytes(path), parsed(path).get(zarr_store.SEAL)):
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


def verify_task(store: StorePlace, task: str, workers: int, decode: bool = False) -> Verdict:
    """Check one published task.

    Args:
        workers, decode: as in `VerifyOptions`.

    Raises:
        UserError: no readable manifest.
    """
    manifest = zarr_store.read_manifest(store, task)
    # A process is sent the manifest without the other cases.
    alone = replace(manifest, cases={})
    cases = [CaseToVerify(store, alone, info, decode) for info in manifest.cases.values()]
    problems: list[str] = []
    read = decoded = 0
    for checked in run_cases(verify_case, cases, workers or default_workers(), f"{task}: verify"):
        problems += checked.problems
        read += checked.read
        decoded += checked.decoded
    problems += _check_groups([store / task / "zarr.json", store / task / "cases" / "zarr.json"])
    if tells_names(store):
        problems += _leftovers(store, task, frozenset(manifest.cases))
    if manifest.version > 1 and tells_names(store):
        problems += _check_statistics(store / task / STATISTICS)
    return Verdict(tuple(sorted(problems)), len(cases), read, decoded)


def _wanted(options: VerifyOptions) -> tuple[list[str], tuple[str, ...]]:
    """Names in full of the tasks to check, and which tasks of the store were not completed."""
    if options.tasks and not tells_names(options.store):
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
            verdict = verify_task(options.store, task, options.workers, options.decode)
        except UserError as error:  # a damaged manifest; the other tasks are still looked at
            failures.append(f"{task}: {error}")
            continue
        failures += verdict.problems
        found = f"{len(verdict.problems)} problems" if verdict.problems else "all as it was written"
        decoded = f", {verdict.decoded / 1e6:.1f} MB decoded" if verdict.decoded else ""
        print(f"{task}: {verdict.cases} cases, {verdict.read / 1e6:.1f} MB read{decoded}: {found}")
    for failure in failures:
        print(failure, flush=True)
    return 1 if failures else 0
