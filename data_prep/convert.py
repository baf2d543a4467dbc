"""`mvl convert`: MSD tasks into the Zarr store, in parallel, resumable, each case whole or absent.

A task is published by its manifest, which is written last. Every case keeps in its attributes what
it was made from (checksums of both files) and how (settings, normalisation numbers), so a second
run, after a stop or a change, converts only what is missing or different.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.case import STATISTICS, Job, Outcome, convert, sources_unchanged, survey, surveyed
from data_prep.existing import completed, converted_names
from data_prep.intensity import ct_normalisation
from data_prep.report import Report
from data_prep.source import Pair, list_pairs, remarks, task_folders
from data_prep.spacing import Geometry, geometry_of, task_spacing
from mvl_dist import store as zarr_store
from mvl_dist.config import FolderFlag
from mvl_dist.errors import UserError
from mvl_dist.files import full_disk_is_a_user_error
from mvl_dist.intensity import CT_SCHEME, MRI_SCHEME
from mvl_dist.parallel import default_workers, processes, run_cases
from mvl_dist.splits import held_out_cases
from mvl_dist.store import CaseInfo, Manifest, Shape3D, Spacing
from mvl_dist.tasks import Task, load_task

# Raised whenever the same files would give other arrays.
CONVERTER = "mvl-convert 1"


@dataclass(frozen=True)
class ConvertOptions:
    """Convert tasks of the Medical Segmentation Decathlon into the Zarr store."""

    msd_root: Path
    """Folder that holds Task04_Hippocampus and its like, or one such folder."""
    store: FolderFlag
    """Folder of the store; made if it is not there."""
    tasks: tuple[str, ...] = ()
    """Task04_Hippocampus, Task04 or 04; all under --msd-root if none is given."""
    grid: Shape3D = (128, 128, 128)
    """Voxels along D, H, W (inferior-superior, posterior-anterior, left-right) of the model's
    input."""
    spacing: Literal["auto", "none"] | Spacing = "auto"
    """Millimetres along D, H, W of the second arrays of each case, for training on patches; auto
    takes the task's by nnU-Net's rule, none leaves these arrays out."""
    workers: int = 0
    """Processes; 0 takes one a CPU core. Each holds one scan, up to 2 GB for the largest CT."""
    resample_on: Literal["cpu", "cuda"] = "cpu"
    """Where images are normalised and resampled: cuda takes a GPU, of several each process the
    next. The arrays are the same to the bit."""
    skip_bad: bool = False
    """Leave bad cases out and list them, instead of stopping at the first."""
    split_seed: int = 0
    """Seed of the held-out test cases, which CT statistics must not see."""
    overwrite: bool = False
    """Delete what the store has of these tasks and convert anew."""


def _settings(task: Task, options: ConvertOptions) -> dict[str, Any]:
    """What every case of a task was made with; compared as JSON with what the store has."""
    settings = {
        "store version": zarr_store.STORE_VERSION,
        "converter": CONVERTER,
        "grid": options.grid,
        "split seed": options.split_seed,
        "spacing": options.spacing,
        "normalisation": CT_SCHEME if task.intensity == "ct" else MRI_SCHEME["scheme"],
        "modalities": task.modalities,
        "labels": task.labels,
    }
    return dict(json.loads(json.dumps(settings)))


def _run(
    work: Callable[[Job], Outcome],
    jobs: Sequence[Job],
    options: ConvertOptions,
    report: Report,
    what: str,
    pool: ProcessPoolExecutor | None,
) -> list[Outcome]:
    """Run jobs; collect bad cases in the report or stop at the first. Returns the good ones."""
    good = []
    workers = options.workers or default_workers()
    # Else one core would be left alone with a large case at the end; and what does not fit into
    # memory fails in the first minute.
    largest_first = sorted(jobs, key=lambda job: -_bytes_of(job.pair.image))
    for outcome in run_cases(work, largest_first, workers, f"{report.task}: {what}", pool=pool):
        if outcome.bad and not options.skip_bad:
            raise UserError(
                f"{report.task}: case {outcome.name}: {outcome.bad}, or leave the case out with "
                "--skip-bad"
            )
        if outcome.bad:
            report.skipped[outcome.name] = outcome.bad
            continue
        report.read_bytes += outcome.read_bytes
        report.raw_bytes += outcome.raw_bytes
        good.append(outcome)
    return good


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # whoever reads it says why
        return 0


def _ct_statistics(
    jobs: Sequence[Job],
    options: ConvertOptions,
    report: Report,
    pool: ProcessPoolExecutor | None,
) -> dict[str, Any]:
    """First pass over a CT task: check every case, sum the histograms of the training part."""
    task = jobs[0].task
    with full_disk_is_a_user_error(options.store):
        (options.store / task.name / STATISTICS).mkdir(exist_ok=True)
    todo = [job for job in jobs if surveyed(job) is None]
    _run(survey, todo, options, report, "statistics", pool)
    histograms = {
        job.pair.name: surveyed(job) for job in jobs if job.pair.name not in report.skipped
    }
    _some_are_good(histograms, report)
    test = held_out_cases(list(histograms), task.name, options.split_seed)
    parts = (counts for name, counts in sorted(histograms.items()) if name not in test)
    return ct_normalisation(task.name, (part for part in parts if part is not None))


def _geometries(pairs: Sequence[Pair], options: ConvertOptions) -> dict[str, Geometry]:
    """Spacing and shape of every readable case, if the task's spacing is to be found."""
    if options.spacing != "auto":
        return {}
    found = ((pair.name, geometry_of(pair)) for pair in pairs)
    return {name: geometry for name, geometry in found if geometry is not None}


def _spacing(
    names: Sequence[str], geometries: dict[str, Geometry], task: str, options: ConvertOptions
) -> Spacing | None:
    """The task's spacing, of the cases that are not held out for the test."""
    if options.spacing == "none":
        return None
    if options.spacing != "auto":
        return options.spacing
    test = held_out_cases(names, task, options.split_seed)
    seen = [geometries[name] for name in names if name in geometries and name not in test]
    return task_spacing(seen) if seen else None


def _some_are_good(names: Any, report: Report) -> None:
    if not names:
        name, why = next(iter(report.skipped.items()))
        raise UserError(
            f"{report.task}: all {len(report.skipped)} cases are bad, the first {name}: {why}"
        )


def _is_current(job: Job) -> bool:
    there = zarr_store.read_case_attributes(job.store, job.task.name, job.pair.name)
    return (
        there is not None
        and there.get("settings") == job.settings
        and there.get("normalisation") == job.normalisation
        and there.get("spacing_mm") == (job.spacing_mm and list(job.spacing_mm))
        and sources_unchanged(job.pair, there.get("info", {}).get("sources"))
    )


def _manifest(job: Job, names: Sequence[str], seed: int, skipped: dict[str, str]) -> Manifest:
    """Assemble the manifest from the cases' own attributes."""
    cases = {}
    for name in sorted(names):
        there = zarr_store.read_case_attributes(job.store, job.task.name, name)
        if there is None:
            raise UserError(f"{job.store}: case {name} vanished: is another conversion running?")
        cases[name] = CaseInfo(**there["info"], arrays=there["arrays"])
    return Manifest(
        version=zarr_store.STORE_VERSION,
        converter=CONVERTER,
        task=job.task,
        grid=job.grid,
        split_seed=seed,
        test_cases=held_out_cases(list(cases), job.task.name, seed),
        normalisation=job.normalisation or {},
        cases=cases,
        skipped=dict(sorted(skipped.items())),
        spacing_mm=job.spacing_mm,
    )


def convert_task(folder: Path, options: ConvertOptions) -> Report:
    """Convert one MSD task folder into `options.store` and publish its manifest.

    Raises:
        UserError: a bad list or case, other settings in the store, a full disk, a killed worker,
            no GPU where one was asked for, or too little of its memory. Cases already written stay
            and are used by the next run.
    """
    begin = None
    if options.resample_on == "cuda":
        from data_prep.gpu import take_gpu  # imports torch, which takes seconds

        take_gpu(0)  # a single case is worked on in this process; and no GPU is known before work
        begin = take_gpu
    with processes(options.workers or default_workers(), begin) as pool:
        return _convert_task(folder, options, pool)


def _convert_task(
    folder: Path, options: ConvertOptions, pool: ProcessPoolExecutor | None
) -> Report:
    start = time.perf_counter()
    task, dataset = load_task(folder)
    pairs = list_pairs(folder, dataset)
    settings = _settings(task, options)
    report = Report(task.name, options.store / task.name, notes=remarks(task, dataset, pairs))
    if options.overwrite:
        zarr_store.withdraw_manifest(options.store, task.name)
        shutil.rmtree(options.store / task.name, ignore_errors=True)
    published = completed(options.store, task, settings)
    zarr_store.create_task_group(options.store, task.name)

    on_gpu = options.resample_on == "cuda"
    jobs = [Job(pair, task, options.store, options.grid, settings, on_gpu=on_gpu) for pair in pairs]
    normalisation = MRI_SCHEME
    if task.intensity == "ct":
        normalisation = _ct_statistics(jobs, options, report, pool)
    geometries = _geometries(pairs, options)
    done: dict[str, Outcome] = {}
    while True:
        jobs = [job for job in jobs if job.pair.name not in report.skipped]
        _some_are_good(jobs, report)
        spacing = _spacing([job.pair.name for job in jobs], geometries, task.name, options)
        jobs = [replace(job, normalisation=normalisation, spacing_mm=spacing) for job in jobs]
        todo = [job for job in jobs if not _is_current(job)]
        if published and any(job.pair.name in published.cases for job in todo):
            zarr_store.withdraw_manifest(options.store, task.name)
        skipped = len(report.skipped)
        good = _run(convert, todo, options, report, "cases", pool)
        done |= {outcome.name: outcome for outcome in good}
        if len(report.skipped) == skipped:
            break
        # A case that was left out may have counted in the spacing: most often nothing is left.
    report.written, report.kept = len(done), len(jobs) - len(done)
    unoriented = sum(not outcome.oriented for outcome in done.values())
    if unoriented:
        report.notes.append(f"{unoriented} headers state no orientation: nibabel's was assumed")

    names = [job.pair.name for job in jobs]
    manifest = _manifest(jobs[0], names, options.split_seed, report.skipped)
    if published is None or json.dumps(asdict(published)) != json.dumps(asdict(manifest)) or done:
        zarr_store.write_manifest(options.store, manifest)
    for name in set(converted_names(options.store, task.name)) - set(names):
        shutil.rmtree(options.store / task.name / "cases" / name)
        report.notes.append(f"removed case {name}, which the source no longer gives")
    files = (options.store / task.name).rglob("*")
    report.store_bytes = sum(path.stat().st_size for path in files if path.is_file())
    report.seconds = time.perf_counter() - start
    return report


def main(argv: list[str]) -> int:
    """Entry of `mvl convert`."""
    import tyro  # slow to import, and needed by the command line only

    flags = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(ConvertOptions, prog="mvl convert", args=argv, config=flags)
    if min(options.grid) < 1:
        raise UserError(f"--grid {' '.join(map(str, options.grid))}: takes three positive numbers")
    if isinstance(options.spacing, tuple) and not all(0 < mm < math.inf for mm in options.spacing):
        raise UserError(
            f"--spacing {' '.join(map(str, options.spacing))}: takes three positive millimetres, "
            "auto or none"
        )
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: takes a positive number, or 0 for all cores")
    folders = task_folders(options.msd_root, options.tasks)
    for folder in folders:  # mistakes in any list show before the first hour of work
        list_pairs(folder, load_task(folder)[1])
    for folder in folders:
        for line in convert_task(folder, options).lines():
            print(line, flush=True)
    return 0
