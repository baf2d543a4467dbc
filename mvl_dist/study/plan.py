"""`mvl study plan`: what the open runs will cost, and how long they take on so many nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvl_dist.errors import UserError
from mvl_dist.launcher import deepspeed_config, deepspeed_settings, launcher_config
from mvl_dist.placement import GROUP_EFFICIENCY, Job, best_schedule
from mvl_dist.store import read_manifest
from mvl_dist.study.cost import CostModel, Measured, shape_of
from mvl_dist.study.fit import least_gpus
from mvl_dist.study.grid import Study, StudyRun
from mvl_dist.study.selection import Selection, found_states, load
from mvl_dist.study.status import Found, is_open
from mvl_dist.tasks import TASKS


@dataclass(frozen=True)
class Plan(Selection):
    """What the open runs will cost, from runs that were measured."""

    device: str = ""
    """Device that measured runs must be of, as MLflow's tag `device` has it ('' takes the most
    frequent)."""
    assumed_tflops: float = 0.0
    """Without measured runs: TFLOP/s that a device is assumed to achieve."""
    nodes: int = 0
    """Place the runs on so many nodes: a table of makespans, and a picture."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    gpu_gib: float = 80.0
    """Memory of a GPU in GiB: with --nodes, runs that need more get several GPUs."""
    launcher: str = "a100x8"
    """With --nodes: the accelerate config, whose ZeRO stage decides what fits."""
    start_seconds: float = 30.0
    """With --nodes: from a run's launch to its first step (an assumption)."""
    picture: Path = Path("study-plan.png")
    """With --nodes: where the Gantt picture goes."""


def plan(options: Plan) -> int:
    """Print what the open runs cost, and with `--nodes` how long they take."""
    if options.nodes < 0 or options.gpus_per_node < 1:
        raise UserError("--nodes and --gpus-per-node take positive numbers")
    study = load(options)
    found = found_states(study, options)
    model, measured, device = cost_model(study, found, options.assumed_tflops, options.device)
    if not measured and not options.assumed_tflops:
        raise UserError(
            "no run of this study was measured yet: train some with 'mvl study run --limit 2', or "
            "say what a device achieves, e.g. --assumed-tflops 100 (bf16 on an A100)"
        )
    still_open = [run for run in study.runs if is_open(found[run.key].state, True)]
    cases = labelled_cases(still_open)
    _print_costs(study, still_open, model, cases)
    print(_basis(model, measured, device, options.assumed_tflops))
    if options.nodes and still_open:
        labels = {run.key: run.label for run in still_open}
        settings = deepspeed_settings(deepspeed_config(launcher_config(options.launcher)))
        least = {
            run.key: least_gpus(run, settings, options.gpu_gib, options.gpus_per_node)
            for run in still_open
        }
        _print_schedules(
            [
                job_of(run, model, cases, options.start_seconds, least[run.key])
                for run in still_open
            ],
            labels,
            options,
        )
    return 0


def _print_costs(
    study: Study, runs: Sequence[StudyRun], model: CostModel, cases: Mapping[str, int]
) -> None:
    hours: dict[str, list[float]] = {}
    guessed: set[str] = set()
    for run in runs:
        estimate = model.estimate(run.config, cases)
        hours.setdefault(run.label, []).append(estimate.device_seconds / 3600)
        if not estimate.measured:
            guessed.add(run.label)
    print(f"{study.name}: {len(runs)} of {len(study.runs)} runs are open")
    width = max([len("model"), *map(len, hours)])
    print(f"  {'model':{width}}   runs   device time   longest  by")
    for label, values in hours.items():
        basis = "its TFLOP" if label in guessed else "measured runs"
        print(
            f"  {label:{width}}  {len(values):5d}  {_time(sum(values)):>12}  "
            f"{_time(max(values)):>8}  {basis}"
        )
    total = sum(map(sum, hours.values()))
    print(f"  {'all':{width}}  {len(runs):5d}  {_time(total):>12}")


def job_of(
    run: StudyRun,
    model: CostModel,
    cases: Mapping[str, int],
    start_seconds: float = 0.0,
    least_gpus: int = 1,
) -> Job:
    """A run as a job to be placed, by its key.

    It may be spread over as many GPUs as its batch can be shared among evenly.

    Args:
        least_gpus: below these it does not fit into memory (`fit.least_gpus`).
    """
    batch = run.config.optim.batch_size
    seconds = model.estimate(run.config, cases).device_seconds
    return Job(run.key, seconds, start_seconds, least_gpus=least_gpus, most_gpus=batch & -batch)


def cost_model(
    study: Study, found: Mapping[str, Found], assumed_tflops: float, device: str = ""
) -> tuple[CostModel, int, str]:
    """A cost model of the study's finished runs on one device; how many these are, and which.

    Args:
        assumed_tflops: TFLOP/s to go by where nothing was measured.
        device: MLflow's tag `device` of the runs to take; '' takes the most frequent.
    """
    measured, device = _measured(study, found, device)
    return CostModel(measured, assumed_tflops or 1.0), len(measured), device


def _print_schedules(jobs: Sequence[Job], labels: Mapping[str, str], options: Plan) -> None:
    from mvl_dist.figures import gantt  # imports torch

    print(f"\nplaced longest first on nodes of {options.gpus_per_node} GPUs:")
    print("  nodes   makespan    at least  of the bound  GPUs busy  runs on several GPUs")
    for nodes in sorted({1, 2, 4, 8, 16, 32, 64, options.nodes}):
        schedule = best_schedule(jobs, nodes, options.gpus_per_node)
        spread = sum(place.job.gpus > 1 for place in schedule.placed)
        print(
            f"  {nodes:5d}  {_time(schedule.makespan / 3600):>9}  "
            f"{_time(schedule.lower_bound / 3600):>10}  "
            f"{schedule.lower_bound / schedule.makespan:12.1%}  {schedule.utilisation:9.1%}  "
            f"{spread:20d}"
        )
        if nodes == options.nodes:
            gantt(options.picture, schedule, labels)
    print(
        "at least: all work on all GPUs, or the longest run. Assumed: "
        f"{options.start_seconds:g} s to start a run, several GPUs {GROUP_EFFICIENCY:.0%} "
        f"efficient.\npicture: {options.picture}"
    )


def _time(hours: float) -> str:
    """Hours in the unit that reads best."""
    for size, unit in ((1.0, "h"), (1 / 60, "min")):
        if hours >= size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:.1f} s"


def _basis(model: CostModel, count: int, device: str, assumed_tflops: float) -> str:
    if model.assumed:
        return f"assumed: {assumed_tflops:g} TFLOP/s a device; no run was measured, no error known"
    text = f"from {count} runs of {len(model.train)} networks measured on {device}"
    if math.isnan(model.error):
        return f"{text}; one network alone says nothing of the error for others"
    return (
        f"{text}; for a network that was not measured the estimate by its TFLOP is off by "
        f"{model.error:.0%} in the median (each network left out once)"
    )


def _measured(study: Study, found: Mapping[str, Found], device: str) -> tuple[list[Measured], str]:
    """Finished runs with their times, all on one device."""
    key = "train_device_seconds_per_sample"
    finished = [
        (run, found[run.key].metrics or {}, (found[run.key].tags or {}).get("device", ""))
        for run in study.runs
        if found[run.key].state == "done" and key in (found[run.key].metrics or {})
    ]
    if not device and finished:
        ((device, _),) = Counter(name for _, _, name in finished).most_common(1)
    measured = [
        Measured(
            shape_of(run.config, TASKS.get(run.config.data.task)),
            metrics[key],
            metrics.get("val_device_seconds_per_case", math.nan),
            metrics.get("test_device_seconds_per_case", math.nan),
        )
        for run, metrics, name in finished
        if name == device
    ]
    return measured, device


def labelled_cases(runs: Sequence[StudyRun]) -> dict[str, int]:
    """Labelled cases a task: what the store holds, else what the decathlon released."""
    counts = {}
    for run in runs:
        task = run.config.data.task
        if task not in counts:
            try:
                counts[task] = len(read_manifest(run.config.data.store, task).cases)
            except UserError:
                if task not in TASKS:
                    raise
                counts[task] = TASKS[task].num_training
    return counts
