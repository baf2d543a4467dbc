"""MLflow, through a journal that a lost server or a killed job cannot empty.

Everything to be tracked is first a line of `journal.jsonl` in the run's folder. A thread sends the
lines in batches (a metric sent by itself costs milliseconds of SQL) and notes in `journal.sent` how
far it got. A server that goes away stops the sending, never the training; what is left over is
sent by the next run of the same job or by `mvl sync`. With the address `spool:` nothing is sent at
all until then: nodes without a network need no server.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from mvl_dist.errors import UserError
from mvl_dist.journal import JOURNAL, RUN_FILE, Journal, RunFile

FLUSH_SECONDS = 5.0
METRICS_A_BATCH = 1000  # MLflow's limit for one log_batch call
PARAMS_A_BATCH = 100

SPOOL = "spool:"
# What makes MLflow's page show an experiment as trainings, not as traces of language models.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
ASK_AGAIN_SECONDS = 3.0

Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")


def default_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the output folder; a spool is in the output too."""
    asked = os.environ.get("MLFLOW_TRACKING_URI")
    if asked == SPOOL:
        return f"{SPOOL}{output.resolve()}"
    return asked or f"sqlite:///{output.resolve() / 'mlflow.db'}"


def open_command(uri: str) -> str:
    """The line that shows the runs in a browser."""
    if uri.startswith(SPOOL):
        return f"MLFLOW_TRACKING_URI=http://... mvl sync {uri.removeprefix(SPOOL)}"
    if uri.startswith("http"):
        return f"open {uri}"
    return f".venv/bin/mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"


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


def table_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; NaN, which JSON lacks, becomes None."""
    return {
        key: [
            None if isinstance(row[key], float) and math.isnan(row[key]) else row[key]
            for row in rows
        ]
        for key in rows[0]
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:6000]
    return flat


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


def _opened(client: Any, uri: str, about: RunFile, folder: Path) -> RunFile:
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


class Tracker:
    """One run's MLflow side; made on rank 0 only (`NullTracker` elsewhere)."""

    def __init__(self, folder: Path, uri: str, experiment: str, run_name: str) -> None:
        """Start the MLflow run, or go on with the one that this folder already has.

        Raises:
            UserError: the tracking server does not answer. Once a run has begun this is no error.
        """
        self.folder, self.uri = folder, uri
        self.spooled = uri.startswith(SPOOL)
        about = RunFile.read(folder) or RunFile(SPOOL, "", experiment, run_name)
        if self.spooled:
            about.write(folder)
        else:
            try:
                self._client = connect(uri)
                about = answered(lambda: _opened(self._client, uri, about, folder))
            except Exception as error:
                raise UserError(
                    f"MLflow at {uri} cannot be used ({short(error)}): start it with 'mlflow "
                    "server --host 127.0.0.1', unset MLFLOW_TRACKING_URI to use a SQLite file in "
                    f"--output, or set it to {SPOOL} to send everything later"
                ) from error
        self.run_id = about.run_id
        self._journal = Journal(folder)
        self._append(op="start")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._thread = threading.Thread(target=self._send_regularly, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ what the engine calls

    def metrics(self, step: int, **values: float) -> None:
        """Log numbers at a step; a value that is not finite is kept as MLflow keeps it (NaN)."""
        self._append(op="metrics", step=step, values={k: float(v) for k, v in values.items()})

    def params(self, values: Mapping[str, Any]) -> None:
        """Log nested settings, flattened with dots."""
        self._append(op="params", values=_flatten(values))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags, the columns that users filter runs by."""
        self._append(op="tags", values=_flatten(values))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Attach a file, as it is when it is sent."""
        self._append(op="artifact", path=str(path.resolve()), folder=folder)

    def table(self, rows: list[dict[str, Any]], file: str) -> None:
        """Attach rows as a table that MLflow's page shows (`file` ends in .json)."""
        self._append(op="table", columns=table_columns(rows), file=file)

    def close(self, status: Status) -> str:
        """Send what is left and end the run; return a line if something still waits, else ''."""
        self._append(op="end", status=status)
        self._stop.set()
        self._thread.join()
        sent = self.flush()
        self._journal.close()
        if sent:
            return ""
        return (
            f"MLflow at {self.uri} did not take all of it; everything is kept in "
            f"{self.folder / JOURNAL}: 'mvl sync {self.folder}' sends it"
        )

    def flush(self) -> bool:
        """Send what waits; False if the server did not take it (it stays in the journal)."""
        if self.spooled:
            return True
        with self._lock:
            operations, offset = self._journal.waiting()
            if not operations:
                return True
            try:
                send(self._client, self.run_id, operations)
            except Exception as error:
                if self._failures == 0:
                    print(
                        f"note: MLflow at {self.uri} does not take the run ({short(error)}); "
                        "training goes on, the journal keeps everything",
                        flush=True,
                    )
                self._failures += 1
                return False
            self._failures = 0
            self._journal.mark_sent(offset)
            return True

    # --------------------------------------------------------------------------------- inside

    def _append(self, **operation: Any) -> None:
        self._journal.append({"time_ms": int(time.time() * 1000), **operation})

    def _send_regularly(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            self.flush()


class NullTracker:
    """What ranks other than 0 have: takes everything, keeps nothing."""

    uri = ""
    run_id = ""

    def metrics(self, step: int, **values: float) -> None:
        """Ignore."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Ignore."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Ignore."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Ignore."""

    def table(self, rows: list[dict[str, Any]], file: str) -> None:
        """Ignore."""

    def flush(self) -> bool:
        """Nothing waits."""
        return True

    def close(self, status: Status) -> str:
        """Nothing waits."""
        return ""


AnyTracker = Tracker | NullTracker


def mark_failed(uri: str, run_id: str) -> None:
    """Note for a run whose process could not that it failed."""
    if uri.startswith(SPOOL):
        Journal.end(Path(run_id), "FAILED")
    else:
        connect(uri).set_terminated(run_id, "FAILED")


def fail_for_rank_0(folder: Path) -> None:
    """`mark_failed` of a run's folder, by another rank; what a server that is away for 20 s does
    not take, `mvl sync` sends.
    """
    about = RunFile.read(folder)
    if about is None:
        return
    try:
        mark_failed(about.uri, about.run_id or str(folder))
    except Exception:
        Journal.end(folder, "FAILED")


def sync(folder: Path) -> int:
    """Send what a run's journal still holds; return the number of operations sent.

    A spooled run is made on the server first.

    Raises:
        UserError: the folder is no run's, or the server still does not answer.
    """
    about = RunFile.read(folder)
    if about is None:
        raise UserError(f"{folder}: no run of mvl_dist/train.py ({RUN_FILE} is missing)")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or about.uri
    if uri.startswith(SPOOL):
        raise UserError(f"{folder} was spooled: set MLFLOW_TRACKING_URI to the server it goes to")
    try:
        client = connect(uri)
        about = _opened(client, uri, about, folder)
        journal = Journal(folder)
        operations, offset = journal.waiting()
        journal.close()
        send(client, about.run_id, operations)
    except Exception as error:
        raise UserError(
            f"MLflow at {uri} does not take the run ({short(error)}): start it and call "
            f"'mvl sync {folder}' again"
        ) from error
    if operations:
        journal.mark_sent(offset)
    return len(operations)
