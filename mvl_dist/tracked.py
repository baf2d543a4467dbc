"""What MLflow holds: experiments, runs, their files and curves. `tracking` sends, this asks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mvl_dist.errors import UserError
from mvl_dist.journal import SPOOL, journalled_experiments, journalled_runs
from mvl_dist.mlflow_server import answered, connect, short

T = TypeVar("T")


@functools.lru_cache(maxsize=4)
def client_of(uri: str) -> Any:
    """A client to read with, made once."""
    return connect(uri)


def asked(uri: str, ask: Callable[[Any], T], run_id: str = "") -> T:
    """What a client of `uri` answers.

    Args:
        run_id: the run that it is asked for, if it is one.

    Raises:
        UserError: it does not answer.
    """
    try:
        return answered(lambda: ask(client_of(uri)))
    except Exception as error:
        which, otherwise = "", "unset MLFLOW_TRACKING_URI to use the SQLite file in --output"
        if run_id:
            which, otherwise = f" for run {run_id}", "pass the run's folder"
        raise UserError(
            f"MLflow at {uri} cannot be asked{which} ({short(error)}): start the server, or "
            f"{otherwise}"
        ) from error


def _nothing_there(uri: str) -> bool:
    # Asking would make an empty database.
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def experiment_names(uri: str) -> list[str]:
    """Names of the experiments that hold runs or were made; none where nothing was tracked yet.

    Raises:
        UserError: the tracking server does not answer.
    """
    if uri.startswith(SPOOL):
        return sorted(journalled_experiments(Path(uri.removeprefix(SPOOL))))
    if _nothing_there(uri):
        return []
    return asked(uri, lambda client: sorted(e.name for e in client.search_experiments()))


def search_runs(uri: str, experiment: str, condition: str = "") -> list[Any]:
    """Every MLflow run of an experiment, the newest first; none where it does not exist.

    Args:
        condition: MLflow's filter, e.g. `tags.key = 'x'`.

    Raises:
        UserError: the tracking server does not answer.
    """
    if uri.startswith(SPOOL):
        return journalled_runs(Path(uri.removeprefix(SPOOL)), experiment)
    if _nothing_there(uri):
        return []

    def ask(client: Any) -> list[Any]:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = client.search_runs(
                [found.experiment_id], condition, max_results=1000, page_token=token or None
            )
            runs += page
            token = page.token or None
        return runs

    return asked(uri, ask)


def get_run(uri: str, run_id: str) -> Any | None:
    """One MLflow run, None where the server has none of that id.

    Raises:
        UserError: the tracking server does not answer.
    """
    from mlflow.exceptions import MlflowException

    def ask(client: Any) -> Any | None:
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    return None if _nothing_there(uri) else asked(uri, ask, run_id)


def artifact_file(uri: str, run_id: str, path: str, folder: Path) -> Path | None:
    """Put an artifact of a run into a folder, which is made; None if the run has none of that name.

    Raises:
        UserError: the server, or its store of artifacts, does not answer.
    """

    def fetch(client: Any) -> Path | None:
        parent = path.rpartition("/")[0]
        if path not in {file.path for file in client.list_artifacts(run_id, parent or None)}:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run_id, path, str(folder)))

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return asked(uri, fetch, run_id)


def metric_curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric's history, step -> value; the last one written where a step was repeated.

    Raises:
        UserError: the tracking server does not answer.
    """
    points = asked(uri, lambda client: client.get_metric_history(run_id, metric))
    ordered = sorted(points, key=lambda point: point.timestamp)
    return {point.step: point.value for point in ordered}
