"""An MLflow server or database: connecting, a run's place on it, sending what journals hold."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mvl_dist.journal import Journal, RunFile

METRICS_A_BATCH = 1000  # MLflow's limit for one log_batch call
PARAMS_A_BATCH = 100

# What makes MLflow's page show an experiment as trainings, not as traces of language models.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
ASK_AGAIN_SECONDS = 3.0

T = TypeVar("T")


def short(error: Exception) -> str:
    """What a server or database said, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def connect(uri: str) -> Any:
    """A client of a server or database."""
    # A dead server must cost seconds: MLflow's own default is seven retries of two minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient  # 1.5 s, and mostly only rank 0 needs it

    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri)
    from filelock import FileLock

    # MLflow creates the tables when it connects, and two that do so at once break each other.
    with FileLock(f"{uri.removeprefix('sqlite:///')}.lock"):
        return MlflowClient(tracking_uri=uri)


def answered(ask: Callable[[], T]) -> T:
    """What a server answers; $MVL_MLFLOW_WAIT_SECONDS (0) is how long one that is away is asked.

    A person's mistyped address is an error at once; a sweep outlives a server that is restarted.
    """
    deadline = time.monotonic() + float(os.environ.get("MVL_MLFLOW_WAIT_SECONDS", "0"))
    while True:
        try:
            return ask()
        except Exception:
            if time.monotonic() + ASK_AGAIN_SECONDS > deadline:
                raise
            time.sleep(ASK_AGAIN_SECONDS)


def _experiment(client: Any, uri: str, name: str, output: Path) -> str:
    """The experiment's id; made where there is none, also by several runs at once."""
    from mlflow.exceptions import MlflowException

    # Without a server, MLflow would put artifacts into the working directory.
    location = str(output.resolve() / "artifacts") if uri.startswith("sqlite:") else None
    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, location, tags={KIND: TRAINING})
        except MlflowException:
            if client.get_experiment_by_name(name) is None:
                raise
    return str(client.get_experiment_by_name(name).experiment_id)


def run_on_server(client: Any, uri: str, about: RunFile, folder: Path) -> RunFile:
    """The run of this folder on a server: the one it has there already, or a new one.

    The address does not tell: a server may be moved, and another database put under an old one.
    """
    from mlflow.exceptions import MlflowException

    if about.run_id:
        try:
            client.get_run(about.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            return about
    experiment_id = _experiment(client, uri, about.experiment, folder.parent.parent)
    run = client.create_run(
        experiment_id, start_time=Journal.began_ms(folder), run_name=about.run_name
    )
    opened = RunFile(uri, str(run.info.run_id), about.experiment, about.run_name)
    Journal.forget_what_was_sent(folder)
    opened.write(folder)
    return opened


def send(client: Any, run_id: str, operations: list[dict[str, Any]]) -> None:
    """Send operations in order, metrics, parameters and tags in batches."""
    from mlflow.entities import Metric, Param, RunTag

    metrics: list[Metric] = []
    for operation in operations:
        kind = operation["op"]
        if kind == "metrics":
            metrics += [
                Metric(key, value, operation["time_ms"], operation["step"])
                for key, value in operation["values"].items()
            ]
            continue
        if kind == "params":
            known = client.get_run(run_id).data.params
            values = operation["values"].items()
            params = [Param(key, value) for key, value in values if key not in known]
            for start in range(0, len(params), PARAMS_A_BATCH):
                client.log_batch(run_id, params=params[start : start + PARAMS_A_BATCH])
            # MLflow refuses to change a parameter, and a run may go on with its store moved.
            changed = [RunTag(f"resumed.{k}", v) for k, v in values if known.get(k, v) != v]
            client.log_batch(run_id, tags=changed)
        elif kind == "tags":
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in operation["values"].items()])
        elif kind == "artifact":
            if Path(operation["path"]).exists():
                client.log_artifact(run_id, operation["path"], operation["folder"])
        elif kind == "table":
            replace_table(client, run_id, operation["columns"], operation["file"])
        elif kind == "start":
            client.update_run(run_id, status="RUNNING")
        elif kind == "end":
            client.set_terminated(run_id, operation["status"], operation["time_ms"])
    for start in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_BATCH])


def replace_table(client: Any, run_id: str, columns: dict[str, list[Any]], file: str) -> None:
    """Log a table as MLflow's `log_table` does, which would append to one that is there."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    client.log_dict(run_id, {"columns": list(columns), "data": rows}, file)
    tags = client.get_run(run_id).data.tags
    shown = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
    if not any(table["path"] == file for table in shown):
        shown.append({"path": file, "type": "table"})
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(shown))
