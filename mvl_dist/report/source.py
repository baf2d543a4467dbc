"""Runs, their files and curves, out of MLflow; or out of a spool, from the runs' own folders."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl_dist.errors import UserError
from mvl_dist.journal import SPOOL, curve
from mvl_dist.showcase import FILE, FOLDER, Showcase
from mvl_dist.tracked import artifact_file, experiment_names, metric_curve, search_runs

ROWS = "test_cases.csv"
VALIDATION_ROWS = "validation_cases.csv"
READERS = 8  # downloads at once


@dataclass(frozen=True)
class Run:
    """A run as MLflow has it."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, str]


class Source:
    """Where runs are read from; files are fetched once."""

    def __init__(self, uri: str, folder: Path) -> None:
        """Read from a tracking address.

        Args:
            folder: where downloaded files are kept while the report is made.
        """
        self.uri, self.folder = uri, folder
        self.spooled = uri.startswith(SPOOL)
        self._files: dict[tuple[str, str], Path | None] = {}
        self._showcases: dict[str, Showcase | None] = {}

    def runs(self, experiment: str) -> list[Run]:
        """Every run of an experiment that was made by a training, the newest first.

        Raises:
            UserError: no such experiment, an empty one, or MLflow does not answer.
        """
        entries = search_runs(self.uri, experiment)
        if not entries:
            raise UserError(self._nothing(experiment))
        runs = [
            Run(
                entry.info.run_id,
                entry.info.status,
                dict(entry.data.tags),
                dict(entry.data.metrics),
                dict(entry.data.params),
            )
            for entry in entries
        ]
        return [run for run in runs if "key" in run.tags]

    def _nothing(self, experiment: str) -> str:
        names = experiment_names(self.uri)
        if experiment in names:
            return (
                f"experiment '{experiment}' at {self.uri} is empty: train its runs with "
                "'mvl study run', or choose another --experiment"
            )
        near = difflib.get_close_matches(experiment, names, n=3, cutoff=0.4)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif names:
            hint = f"there are {', '.join(names[:8])}"
        else:
            hint = "there is none; set --output or MLFLOW_TRACKING_URI to where the runs were sent"
        return f"no experiment '{experiment}' at {self.uri}: {hint}"

    def file(self, run: Run, path: str) -> Path | None:
        """An artifact of a run as a local file; None if the run has none of that name."""
        key = (run.run_id, path)
        if key not in self._files:
            if self.spooled:
                found = Path(run.run_id) / path
                self._files[key] = found if found.exists() else None
            else:
                self._files[key] = artifact_file(
                    self.uri, run.run_id, path, self.folder / run.run_id
                )
        return self._files[key]

    def fetch(self, runs: Sequence[Run], *paths: str) -> None:
        """Fetch files of many runs at once."""
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda pair: self.file(*pair), [(r, p) for r in runs for p in paths]))

    def rows(self, run: Run, file: str = ROWS) -> list[dict[str, Any]]:
        """A run's per-case rows; none if it was not scored. Undefined values are NaN."""
        path = self.file(run, file)
        if path is None:
            return []
        with path.open(newline="") as table:
            return [
                {key: _value(key, text) for key, text in row.items()}
                for row in csv.DictReader(table)
            ]

    def showcase(self, run: Run) -> Showcase | None:
        """Masks, images, maps and calibration of a run; None if it kept none."""
        if run.run_id not in self._showcases:
            path = self.file(run, f"{FOLDER}/{FILE}")
            self._showcases[run.run_id] = Showcase(path) if path else None
        return self._showcases[run.run_id]

    def curve(self, run: Run, metric: str) -> dict[int, float]:
        """A metric's history, step -> value; the last value where a step was repeated."""
        if self.spooled:
            return curve(Path(run.run_id), metric)
        return metric_curve(self.uri, run.run_id, metric)


def _value(key: str, text: str | None) -> Any:
    if key in ("task", "case", "region", "kind", "split"):
        return text
    if text in (None, "", "nan", "None"):
        return math.nan
    try:
        return float(text)
    except ValueError:
        return text
