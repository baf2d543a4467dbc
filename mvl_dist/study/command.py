"""`mvl study list|plan|status|next|run|pack [FILE]`: what a study is, and what of it is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mvl_dist.errors import UserError
from mvl_dist.launch import STOPPED, launch, world_size
from mvl_dist.plan import with_batch_for
from mvl_dist.study.grid import StudyRun
from mvl_dist.study.pack import Pack, pack
from mvl_dist.study.plan import Plan, plan
from mvl_dist.study.selection import (
    Selection,
    arguments_of,
    found_states,
    load,
    mark_as_failed,
    open_runs,
)
from mvl_dist.study.smoke import CASES, GRID, tasks_of
from mvl_dist.study.status import STATES
from mvl_dist.tracking import default_uri


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
    "pack": Pack,
}


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl study`."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=list(argv), prog="mvl study", config=(tyro.conf.FlagCreatePairsOff,)
    )
    todo: Mapping[type, Callable[..., int]] = {
        List: _list,
        Plan: plan,
        Status: _status,
        Next: _next,
        Run: _run,
        Pack: _pack,
    }
    return todo[type(chosen)](chosen)


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


# ------------------------------------------------------------------------------------------ running


def _run(options: Run) -> int:
    study = load(options)
    ranks = world_size(options.launcher)
    for run in study.runs:
        with_batch_for(run.config, ranks)  # refused here, not after hours of other runs
    if options.smoke:
        _make_stand_ins(options.output / "smoke", tasks_of(study.runs))
    deaths: Counter[str] = Counter()
    while open_runs(options):
        status = launch(options.launcher, "train_study.py", arguments_of(options))
        if status in (0, 3, 4, STOPPED) or options.limit:
            return int(status != 0 or any(count > 1 for count in deaths.values()))
        # A rank died, in the run that now comes first; it goes on from its checkpoint once.
        for died in open_runs(options)[:1]:
            deaths[died.key] += 1
            if deaths[died.key] > 1:
                alone = f"{options.file} --where key={died.key} --retry-failed"
                if options.retry_failed or not mark_as_failed(died, options):
                    raise UserError(
                        f"{died} ended its launch twice: see why with 'mvl study run {alone}'"
                    )
                print(
                    f"{died} ended its launch twice, is marked as failed: 'mvl study run {alone}'"
                )
    print(f"{study.name}: nothing is open among {len(study.runs)} runs")
    return int(any(count > 1 for count in deaths.values()))


def _pack(options: Pack) -> int:
    if options.smoke:
        _make_stand_ins(options.output / "smoke", tasks_of(load(options).runs))
    return pack(options)


def _make_stand_ins(folder: Path, tasks: Sequence[str]) -> None:
    """Synthetic data for `--smoke`, through the commands that a user has."""
    from filelock import FileLock

    numbers = [task.partition("_")[0] for task in tasks]
    grid = [str(size) for size in GRID]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = ("--msd-root", str(folder / "msd"))
    folder.mkdir(parents=True, exist_ok=True)
    for arguments in (
        ("phantom", *root, "--cases", str(CASES), "--stand-ins", *numbers),
        ("convert", *root, "--store", str(folder / "store"), "--grid", *grid, "--tasks", *tasks),
    ):
        command = [sys.executable, "-m", "mvl_dist.cli", *arguments]
        with FileLock(folder / "making.lock"):  # array tasks begin at the same moment
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"--smoke: {' '.join(done.stderr.split())[-400:]}")
