"""`mvl study list|plan|status|next|run [FILE]`: what a study is, and what of it is done."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from mvl_dist.config import RunConfig
from mvl_dist.errors import UserError
from mvl_dist.launch import STOPPED, launch
from mvl_dist.store import read_manifest
from mvl_dist.study.cost import CostModel, Measured, shape_of
from mvl_dist.study.grid import Study, StudyRun, load_study, select
from mvl_dist.study.smoke import CASES, GRID, smoke_study, tasks_of
from mvl_dist.study.status import STATES, Found, is_open, states
from mvl_dist.tasks import TASKS
from mvl_dist.tracking import default_uri, mark_failed

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "studies" / "paper.yaml"


@dataclass(frozen=True)
class Selection:
    """Which runs of which study."""

    file: Annotated[Path, tyro.conf.Positional] = PAPER
    """Study file (default: the paper's whole grid)."""
    where: tuple[str, ...] = ()
    """Conditions KEY=VALUE[,VALUE]: table, model, task, fold, fraction, seed or key."""
    store: Path = field(default_factory=lambda: RunConfig().data.store)
    """Zarr store (default: $MVL_STORE, else ./store)."""
    output: Path = field(default_factory=lambda: RunConfig().output)
    """Folder of runs and of the default MLflow database (default: $MVL_OUTPUT, else ./runs)."""
    smoke: bool = False
    """Shrink every run to a few steps on synthetic stand-ins, made in OUTPUT/smoke."""
    limit: int = 0
    """At most this many runs; 0: all."""
    retry_failed: bool = False
    """Take runs that failed as well."""


@dataclass(frozen=True)
class List(Selection):
    """How many runs there are, table by table; each run where --where chooses some."""

    json: bool = False
    """One JSON object a run instead."""


@dataclass(frozen=True)
class Status(Selection):
    """What is done, running, interrupted, failed, stale or missing, asked of MLflow."""

    json: bool = False
    """One JSON object a run instead."""


@dataclass(frozen=True)
class Plan(Selection):
    """What the open runs will cost, from runs that were measured."""

    device: str = ""
    """Device that measured runs must be of, as MLflow's tag `device` has it ('' takes the most
    frequent)."""
    assumed_tflops: float = 0.0
    """Without measured runs: TFLOP/s that a device is assumed to achieve."""


@dataclass(frozen=True)
class Next(Selection):
    """The next open runs, and the command that trains one."""


@dataclass(frozen=True)
class Run(Selection):
    """Train the next open runs here, one after another in one launch."""

    launcher: str = ""
    """An accelerate config or its name (default by the GPUs here)."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": List,
    "plan": Plan,
    "status": Status,
    "next": Next,
    "run": Run,
}


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl study`."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=list(argv), prog="mvl study", config=(tyro.conf.FlagCreatePairsOff,)
    )
    todo: Mapping[type, Callable[..., int]] = {
        List: _list,
        Plan: _plan,
        Status: _status,
        Next: _next,
        Run: _run,
    }
    return todo[type(chosen)](chosen)


def parse_selection(argv: Sequence[str], prog: str) -> Selection:
    """Read a selection alone: what the launched script is given."""
    return tyro.cli(Selection, args=list(argv), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))


# ------------------------------------------------------------------------------------ what is asked


def load(selection: Selection) -> Study:
    """The study with the selected runs, each with its store and output.

    Raises:
        UserError: no such study, or a condition that no run meets.
    """
    study = load_study(selection.file)
    runs = select(study.runs, [c for c in selection.where if not c.startswith("key=")])
    study = replace(study, runs=runs)
    store = selection.store
    if selection.smoke:
        study = smoke_study(study)
        store = selection.output / "smoke" / "store"
    keys = [condition for condition in selection.where if condition.startswith("key=")]
    runs = tuple(
        replace(
            run,
            config=replace(
                run.config, data=replace(run.config.data, store=store), output=selection.output
            ),
        )
        for run in select(study.runs, keys)
    )
    return replace(study, runs=runs)


def found_states(study: Study, selection: Selection) -> dict[str, Found]:
    """The state of each run of a loaded study."""
    checksums = {}
    for task in tasks_of(study.runs):
        try:
            store = study.runs[0].config.data.store
            checksums[task] = read_manifest(store, task).checksum
        except UserError:
            continue  # not converted here: nothing to compare with
    return states(study.runs, default_uri(selection.output), selection.output, checksums)


def open_runs(selection: Selection) -> list[StudyRun]:
    """Selected runs that still have to be trained and that nobody trains now."""
    study = load(selection)
    found = found_states(study, selection)
    return [run for run in study.runs if is_open(found[run.key].state, selection.retry_failed)]


def is_still_open(run: StudyRun, selection: Selection) -> bool:
    """Ask again for one run, which another launch may have trained meanwhile."""
    alone = Study("", selection.file, (), (run,))
    return is_open(found_states(alone, selection)[run.key].state, selection.retry_failed)


# ---------------------------------------------------------------------------------------- commands


def _row(run: StudyRun) -> dict[str, object]:
    data = run.config.data
    return {
        "key": run.key,
        "model": run.label,
        "task": data.task,
        "fold": data.fold,
        "fraction": data.fraction,
        "seed": run.config.optim.seed,
        "tables": [table for table, _ in run.tables],
    }


def _list(options: List) -> int:
    study = load(options)
    if options.json:
        print(json.dumps([_row(run) for run in study.runs], indent=1))
        return 0
    print(f"{study.name}: {len(study.runs)} runs")
    width = max(map(len, study.tables))
    for table in study.tables:
        shown = [run for run in study.runs if table in dict(run.tables)]
        first = sum(run.tables[0][0] == table for run in shown)
        print(f"  {table:{width}}  {len(shown):5d} runs, {first:5d} of them not in a table above")
    if options.where:
        for run in study.runs:
            print(f"  {run.key}  {run}")
    return 0


def _status(options: Status) -> int:
    study = load(options)
    found = found_states(study, options)
    if options.json:
        rows = [
            {**_row(run), "state": found[run.key].state, "run_id": found[run.key].run_id}
            for run in study.runs
        ]
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{study.name}: {default_uri(options.output)}")
    width = max(map(len, study.tables))
    print("  ".join([f"  {'':{width}}", *(f"{state:>11}" for state in STATES)]))
    for table in (*study.tables, "all"):
        counted = Counter(
            found[run.key].state
            for run in study.runs
            if table == "all" or table in dict(run.tables)
        )
        print("  ".join([f"  {table:{width}}", *(f"{counted[state]:11d}" for state in STATES)]))
    for run in study.runs:
        if found[run.key].state in ("failed", "interrupted", "stale"):
            print(f"  {found[run.key].state}: {run.key}  {run}")
    return 0


def _next(options: Next) -> int:
    runs = open_runs(options)
    if not runs:
        print("nothing is open")
        return 0
    for run in runs[: options.limit or 1]:
        smoke = " --smoke" if options.smoke else ""
        print(f"{run}\n  mvl study run {options.file} --where key={run.key}{smoke}")
    return 0


def _plan(options: Plan) -> int:
    study = load(options)
    found = found_states(study, options)
    measured, device = _measured(study, found, options.device)
    if not measured and not options.assumed_tflops:
        raise UserError(
            "no run of this study was measured yet: train some with 'mvl study run --limit 2', or "
            "say what a device achieves, e.g. --assumed-tflops 100 (bf16 on an A100)"
        )
    model = CostModel(measured, options.assumed_tflops)
    still_open = [run for run in study.runs if is_open(found[run.key].state, True)]
    cases = _cases(still_open)
    hours: dict[str, list[float]] = {}
    guessed: set[str] = set()
    for run in still_open:
        estimate = model.estimate(run.config, cases)
        hours.setdefault(run.label, []).append(estimate.device_seconds / 3600)
        if not estimate.measured:
            guessed.add(run.label)
    print(f"{study.name}: {len(still_open)} of {len(study.runs)} runs are open")
    width = max([len("model"), *map(len, hours)])
    print(f"  {'model':{width}}   runs   device time   longest  by")
    for label, values in hours.items():
        basis = "its TFLOP" if label in guessed else "measured runs"
        print(
            f"  {label:{width}}  {len(values):5d}  {_time(sum(values)):>12}  "
            f"{_time(max(values)):>8}  {basis}"
        )
    total = sum(map(sum, hours.values()))
    print(f"  {'all':{width}}  {len(still_open):5d}  {_time(total):>12}")
    print(_basis(model, len(measured), device, options.assumed_tflops))
    return 0


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


def _cases(runs: Sequence[StudyRun]) -> dict[str, int]:
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


# ------------------------------------------------------------------------------------------ running


def _run(options: Run) -> int:
    study = load(options)
    if options.smoke:
        _make_stand_ins(options.output / "smoke", tasks_of(study.runs))
    deaths: Counter[str] = Counter()
    while open_runs(options):
        status = launch(options.launcher, "train_study.py", _selected(options))
        if status in (0, 3, 4, STOPPED) or options.limit:
            return int(status != 0 or any(count > 1 for count in deaths.values()))
        # A rank died, in the run that now comes first; it goes on from its checkpoint once.
        for died in open_runs(options)[:1]:
            deaths[died.key] += 1
            if deaths[died.key] > 1:
                _give_up(died, options)
    print(f"{study.name}: nothing is open among {len(study.runs)} runs")
    return int(any(count > 1 for count in deaths.values()))


def _give_up(run: StudyRun, options: Run) -> None:
    """Mark a run as failed that keeps ending its launch, so that the others get their turn."""
    alone = f"mvl study run {options.file} --where key={run.key} --retry-failed"
    found = found_states(Study("", options.file, (), (run,)), options)[run.key]
    if options.retry_failed or not found.run_id:
        raise UserError(f"{run} ended its launch twice: see why with '{alone}'")
    mark_failed(default_uri(options.output), found.run_id)
    print(f"{run} ended its launch twice, is marked as failed: see why with '{alone}'")


def _selected(options: Run) -> list[str]:
    return [
        str(options.file.resolve()),
        *("--store", str(options.store), "--output", str(options.output)),
        *(("--where", *options.where) if options.where else ()),
        *("--limit", str(options.limit)),
        *(("--smoke",) if options.smoke else ()),
        *(("--retry-failed",) if options.retry_failed else ()),
    ]


def _make_stand_ins(folder: Path, tasks: Sequence[str]) -> None:
    """Synthetic data for `--smoke`, through the commands that a user has."""
    numbers = [task.partition("_")[0] for task in tasks]
    grid = [str(size) for size in GRID]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = ("--msd-root", str(folder / "msd"))
    for arguments in (
        ("phantom", *root, "--cases", str(CASES), "--stand-ins", *numbers),
        ("convert", *root, "--store", str(folder / "store"), "--grid", *grid, "--tasks", *tasks),
    ):
        command = [sys.executable, "-m", "mvl_dist.cli", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"--smoke: {' '.join(done.stderr.split())[-400:]}")
