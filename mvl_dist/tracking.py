"""What a run tracks, to MLflow through a journal that a lost server or killed job cannot empty.

Everything to be tracked is first a line of `journal.jsonl` in the run's folder. A thread sends the
lines in batches (a metric sent by itself costs milliseconds of SQL) and notes in `journal.sent` how
far it got. A server that goes away stops the sending, never the training; what is left over is
sent by the next run of the same job or by `mvl sync`. With the address `spool:` nothing is sent at
all until then: nodes without a network need no server.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mvl_dist.errors import UserError
from mvl_dist.journal import JOURNAL, SPOOL, Journal, RunFile
from mvl_dist.mlflow_server import answered, connect, run_on_server, send, short

FLUSH_SECONDS = 5.0

Status = Literal["FINISHED", "FAILED", "KILLED"]


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
                about = answered(lambda: run_on_server(self._client, uri, about, folder))
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
