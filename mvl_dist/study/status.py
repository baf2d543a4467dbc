"""What MLflow says of a study's runs: done, running, interrupted, failed, stale or missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvl_dist.study.grid import StudyRun
from mvl_dist.study.lease import holder
from mvl_dist.tracked import search_runs

State = Literal["done", "running", "interrupted", "failed", "stale", "missing"]
STATES: tuple[State, ...] = ("done", "running", "interrupted", "failed", "stale", "missing")
# Of several MLflow runs of one key, the most finished one counts.
_RANK: dict[State, int] = {state: number for number, state in enumerate(STATES)}


@dataclass(frozen=True)
class Found:
    """A run of the study as MLflow has it."""

    state: State
    run_id: str = ""
    metrics: Mapping[str, float] | None = None
    tags: Mapping[str, str] | None = None


def states(
    runs: Iterable[StudyRun],
    uri: str,
    output: Path,
    checksums: Mapping[str, str],
) -> dict[str, Found]:
    """The state of each run by its key.

    `interrupted` means that MLflow has it as running or killed and nobody holds its lease.

    Args:
        checksums: a run's key -> checksum of its data in the store now. A run that finished on
            other data is `stale`; one whose task is not in the store is not compared.

    Raises:
        UserError: MLflow does not answer.
    """
    runs = list(runs)
    by_key: dict[str, list[Any]] = {}
    # One run is asked for by its key: an experiment can hold thousands.
    condition = f"tags.key = '{runs[0].key}'" if len(runs) == 1 else ""
    for experiment in {run.config.experiment for run in runs}:
        for entry in search_runs(uri, experiment, condition):
            by_key.setdefault(entry.data.tags.get("key", ""), []).append(entry)
    found = {}
    for run in runs:
        known = [
            Found(
                _state(run, entry, output, checksums.get(run.key, "")),
                entry.info.run_id,
                dict(entry.data.metrics),
                dict(entry.data.tags),
            )
            for entry in by_key.get(run.key, [])
        ]
        missing: State = "running" if holder(output, run.key) else "missing"
        found[run.key] = min(known, key=lambda f: _RANK[f.state], default=Found(missing))
    return found


def _state(run: StudyRun, entry: Any, output: Path, checksum: str) -> State:
    status = entry.info.status
    if status == "FINISHED":
        trained_on = entry.data.tags.get("data_checksum", "")
        return "stale" if checksum and trained_on != checksum else "done"
    if holder(output, run.key):
        return "running"
    return "failed" if status == "FAILED" else "interrupted"


def is_open(state: State, retry_failed: bool) -> bool:
    """Whether a run still has to be trained, and nobody is at it."""
    return state in ("interrupted", "missing", "stale") or (state == "failed" and retry_failed)
