"""A run's journal: all that is to be tracked, on disk before any server has it.

RUN/journal.jsonl    one operation a line: start, params, tags, metrics, table, artifact, end
RUN/journal.sent     bytes of it that the server has
RUN/mlflow.json      which MLflow run it is
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvl_dist.files import write_text_atomically

JOURNAL = "journal.jsonl"
SENT = "journal.sent"
RUN_FILE = "mlflow.json"
# Tracking address of runs that live in their journals alone until they are sent.
SPOOL = "spool:"


@dataclass(frozen=True)
class RunFile:
    """Which MLflow run a folder is; `run_id` is '' until a spooled run is sent."""

    uri: str
    run_id: str
    experiment: str = "mvl-dist"
    run_name: str = ""

    @classmethod
    def read(cls, folder: Path) -> RunFile | None:
        """The folder's file, None where there is none."""
        try:
            return cls(**json.loads((folder / RUN_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Replace the folder's file."""
        write_text_atomically(folder / RUN_FILE, json.dumps(asdict(self)))


class Journal:
    """Lines waiting to be sent: appended by the training, read by the sender."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._file = self.path.open("a")
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a killed run's last line may be half; it must end there

    def append(self, operation: dict[str, Any]) -> None:
        """Add one operation; on disk before this returns to the training loop's next flush."""
        self._file.write(json.dumps(operation) + "\n")
        self._file.flush()

    def waiting(self) -> tuple[list[dict[str, Any]], int]:
        """Operations not sent yet, and the offset after them. A half line is left out."""
        start = self.sent_offset()
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        operations = []
        for line in text.splitlines():
            try:
                operations.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the half line of a killed run
        return operations, start + len(text)

    def sent_offset(self) -> int:
        """Bytes of the journal that the server has."""
        try:
            return int((self.folder / SENT).read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def mark_sent(self, offset: int) -> None:
        """Note that everything before `offset` has arrived."""
        write_text_atomically(self.folder / SENT, str(offset))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def forget_what_was_sent(folder: Path) -> None:
        """From here on the whole journal waits: another server is to have it."""
        (folder / SENT).unlink(missing_ok=True)

    @staticmethod
    def began_ms(folder: Path) -> int | None:
        """Time of the first operation in milliseconds since 1970; None where there is none."""
        return next((entry["time_ms"] for entry in _entries(folder)), None)

    @staticmethod
    def end(folder: Path, status: str) -> None:
        """Close a run whose process could not."""
        journal = Journal(folder)
        journal.append({"time_ms": int(time.time() * 1000), "op": "end", "status": status})
        journal.close()


@dataclass(frozen=True)
class Info:
    """A journalled run as MLflow's `run.info`; the folder is its id."""

    run_id: str
    status: str


@dataclass(frozen=True)
class Data:
    """A journalled run as MLflow's `run.data`."""

    tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]


@dataclass(frozen=True)
class JournalledRun:
    """What MLflow's search would give, read from the journal."""

    info: Info
    data: Data


def journalled_runs(output: Path, experiment: str) -> list[JournalledRun]:
    """Every run of an experiment under an output folder, by its journal alone."""
    found = []
    for file in sorted(output.glob(f"*/*/{RUN_FILE}")):
        about = RunFile.read(file.parent)
        if about is not None and about.experiment == experiment:
            found.append(_journalled(file.parent))
    return found


def journalled_experiments(output: Path) -> set[str]:
    """Names of the experiments that runs under an output folder belong to."""
    found = (RunFile.read(file.parent) for file in output.glob(f"*/*/{RUN_FILE}"))
    return {about.experiment for about in found if about is not None}


def curve(folder: Path, metric: str) -> dict[int, float]:
    """A metric of a run, step -> value; the last value where a step was repeated."""
    return {
        entry["step"]: entry["values"][metric]
        for entry in _entries(folder)
        if entry["op"] == "metrics" and metric in entry["values"]
    }


def _journalled(folder: Path) -> JournalledRun:
    status = "RUNNING"
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    params: dict[str, str] = {}
    for entry in _entries(folder):
        if entry["op"] == "tags":
            tags |= entry["values"]
        elif entry["op"] == "metrics":
            metrics |= entry["values"]
        elif entry["op"] == "params":
            params |= entry["values"]
        elif entry["op"] in ("start", "end"):
            status = entry.get("status", "RUNNING")
    return JournalledRun(Info(str(folder), status), Data(tags, metrics, params))


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        with (folder / JOURNAL).open() as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue  # the half line of a killed run
    except FileNotFoundError:
        return
