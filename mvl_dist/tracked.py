"""What MLflow holds beside a list of runs: names of experiments, files of a run, curves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mvl_dist.journal import journalled_experiments
from mvl_dist.tracking import SPOOL, asked


def experiment_names(uri: str) -> list[str]:
    """Names of the experiments that hold runs or were made; none where nothing was tracked yet.

    Raises:
        UserError: the tracking server does not answer.
    """
    if uri.startswith(SPOOL):
        return sorted(journalled_experiments(Path(uri.removeprefix(SPOOL))))
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    return asked(uri, lambda client: sorted(e.name for e in client.search_experiments()))


def artifact_file(uri: str, run_id: str, path: str, folder: Path) -> Path | None:
    """An artifact as a local file, fetched into `folder` if it is not local; None if there is none.

    Raises:
        UserError: the tracking server does not answer.
    """

    def fetch(client: Any) -> Path | None:
        parent = path.rpartition("/")[0]
        if path not in {file.path for file in client.list_artifacts(run_id, parent or None)}:
            return None
        own = folder / run_id
        own.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run_id, path, str(own)))

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return asked(uri, fetch)


def metric_curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric's history, step -> value; the last one written where a step was repeated.

    Raises:
        UserError: the tracking server does not answer.
    """
    points = asked(uri, lambda client: client.get_metric_history(run_id, metric))
    ordered = sorted(points, key=lambda point: point.timestamp)
    return {point.step: point.value for point in ordered}
