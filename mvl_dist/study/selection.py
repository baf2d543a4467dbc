"""Which runs of which study are meant, and which of them are open."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from mvl_dist.config import RunConfig, StoreFlag
from mvl_dist.ended_runs import mark_failed
from mvl_dist.errors import UserError
from mvl_dist.plan import data_checksum
from mvl_dist.store import read_manifest
from mvl_dist.study.grid import Study, StudyRun, load_study, select
from mvl_dist.study.smoke import smoke_study, tasks_of
from mvl_dist.study.status import Found, is_open, states
from mvl_dist.tracking import default_uri

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "studies" / "paper.yaml"


@dataclass(frozen=True)
class Selection:
    """Which runs of which study."""

    file: Annotated[Path, tyro.conf.Positional] = PAPER
    """Study file (default: the paper's whole grid)."""
    where: tuple[str, ...] = ()
    """Conditions KEY=VALUE[,VALUE]: table, model, task, fold, fraction, seed or key."""
    store: StoreFlag = field(default_factory=lambda: RunConfig().data.store)
    """Zarr store, a folder or an address (default: $MVL_STORE, else ./store)."""
    output: Path = field(default_factory=lambda: RunConfig().output)
    """Folder of runs and of the default MLflow database (default: $MVL_OUTPUT, else ./runs)."""
    smoke: bool = False
    """Shrink every run to a few steps on synthetic stand-ins, made in OUTPUT/smoke."""
    limit: int = 0
    """At most this many runs; 0: all."""
    retry_failed: bool = False
    """Take runs that failed as well."""


def parse_selection(argv: Sequence[str], prog: str) -> Selection:
    """Read a selection alone: what the launched script is given."""
    return tyro.cli(Selection, args=list(argv), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))


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
    checksums: dict[str, str] = {}
    store = study.runs[0].config.data.store
    for task in tasks_of(study.runs):
        with contextlib.suppress(UserError):  # not converted here: nothing to compare with
            manifest = read_manifest(store, task)
            of_task = [run for run in study.runs if run.config.data.task == task]
            by_resolution = {run.config.data.resolution: run.config.data for run in of_task}
            known = {name: data_checksum(manifest, data) for name, data in by_resolution.items()}
            checksums |= {run.key: known[run.config.data.resolution] for run in of_task}
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


def arguments_of(selection: Selection) -> list[str]:
    """The selection as arguments of the launched script."""
    return [
        str(selection.file.resolve()),
        *("--store", str(selection.store), "--output", str(selection.output)),
        *(("--where", *selection.where) if selection.where else ()),
        *("--limit", str(selection.limit)),
        *(("--smoke",) if selection.smoke else ()),
        *(("--retry-failed",) if selection.retry_failed else ()),
    ]


def mark_as_failed(run: StudyRun, selection: Selection) -> bool:
    """Note in MLflow that a run failed whose process could not; False if MLflow has no such run."""
    found = found_states(Study("", selection.file, (), (run,)), selection)[run.key]
    if found.run_id and found.state == "interrupted":
        mark_failed(default_uri(selection.output), found.run_id)
    return bool(found.run_id)
