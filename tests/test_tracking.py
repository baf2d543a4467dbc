import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mvl_dist.errors import UserError
from mvl_dist.journal import JOURNAL
from mvl_dist.tracking import Tracker, default_uri, sync


def start(folder: Path, uri: str) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    return Tracker(folder, uri, "tests", folder.name)


def history(uri: str, tracker: Tracker, key: str = "loss") -> list[tuple[int, float]]:
    points = MlflowClient(uri).get_metric_history(tracker.run_id, key)
    return sorted((point.step, point.value) for point in points)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_all_that_is_logged_arrives(tmp_path: Path, sqlite: str) -> None:
    tracker = start(tmp_path / "out" / "task" / "run", sqlite)
    for step in range(2500):  # more than one batch of MLflow
        tracker.metrics(step, loss=step / 2, dice=0.5)
    tracker.params({"optim": {"lr": 0.1}, "model": "vit"})
    tracker.tags({"zero_stage": 2})
    (tmp_path / "note.txt").write_text("hello")
    tracker.artifact(tmp_path / "note.txt")
    tracker.table([{"case": "of an earlier scoring", "dice": 0.1}], "cases.json")
    tracker.table([{"case": "a", "dice": 0.9}, {"case": "b", "dice": float("nan")}], "cases.json")
    assert tracker.close("FINISHED") == ""
    client = MlflowClient(sqlite)
    run = client.get_run(tracker.run_id)
    assert history(sqlite, tracker) == [(step, step / 2) for step in range(2500)]
    assert run.data.params == {"optim.lr": "0.1", "model": "vit"}
    assert run.data.tags["zero_stage"] == "2"
    assert run.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(tracker.run_id)} == {"note.txt", "cases.json"}
    table = json.loads(Path(client.download_artifacts(tracker.run_id, "cases.json")).read_text())
    assert table == {"columns": ["case", "dice"], "data": [["a", 0.9], ["b", None]]}
    assert (tmp_path / "out" / "artifacts").is_dir()  # and not in the working directory


def test_a_run_that_is_started_again_goes_on_in_the_same_mlflow_run(
    tmp_path: Path, sqlite: str
) -> None:
    first = start(tmp_path / "run", sqlite)
    first.metrics(1, loss=1.0)
    first.close("KILLED")
    second = start(tmp_path / "run", sqlite)
    second.metrics(2, loss=0.5)
    second.close("FINISHED")
    assert second.run_id == first.run_id
    assert history(sqlite, second) == [(1, 1.0), (2, 0.5)]


def test_a_run_that_goes_on_with_its_store_moved_keeps_the_first_value_and_notes_the_other(
    tmp_path: Path, sqlite: str
) -> None:
    first = start(tmp_path / "run", sqlite)
    first.params({"data": {"store": "/old", "fold": 0}})
    first.close("KILLED")
    second = start(tmp_path / "run", sqlite)
    second.params({"data": {"store": "/new", "fold": 0}})
    assert second.close("FINISHED") == ""
    run = MlflowClient(sqlite).get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"data.store": "/old", "data.fold": "0"}
    resumed = {key: value for key, value in run.data.tags.items() if key.startswith("resumed.")}
    assert resumed == {"resumed.data.store": "/new"}


def test_a_half_written_journal_line_of_a_killed_run_loses_that_line_alone(
    tmp_path: Path, sqlite: str
) -> None:
    first = start(tmp_path / "run", sqlite)
    first.metrics(1, loss=1.0)
    first.close("KILLED")
    with (tmp_path / "run" / JOURNAL).open("a") as journal:
        journal.write('{"op": "metrics", "st')
    second = start(tmp_path / "run", sqlite)
    second.metrics(2, loss=0.5)
    second.close("FINISHED")
    assert history(sqlite, second) == [(1, 1.0), (2, 0.5)]


def test_a_server_that_is_not_there_at_the_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 cannot be used") as caught:
        start(tmp_path / "run", "http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_the_default_is_a_sqlite_file_in_the_output_and_the_variable_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_uri(tmp_path) == "http://mlflow:5000"


class Server:
    """A real MLflow server over SQLite, on a free loopback port, that can be killed and revived."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"),
                *("--artifacts-destination", str(self.folder / "artifacts")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError("the MLflow server did not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


def test_a_server_that_goes_away_loses_no_metric_and_stops_nothing(
    tmp_path: Path, server: Server
) -> None:
    tracker = start(tmp_path / "run", server.uri)
    tracker.metrics(1, loss=1.0)
    assert tracker.flush()
    server.kill()
    started = time.monotonic()
    for step in range(2, 50):
        tracker.metrics(step, loss=1 / step)
    assert time.monotonic() - started < 1  # the training does not wait for it
    assert not tracker.flush()
    left = tracker.close("FINISHED")
    assert f"mvl sync {tmp_path / 'run'}" in left
    with pytest.raises(UserError, match="start it and call 'mvl sync"):
        sync(tmp_path / "run")
    server.start()
    assert sync(tmp_path / "run") == 49  # 48 metrics and the end
    assert history(server.uri, tracker) == [(step, 1 / step) for step in range(1, 50)]
    assert MlflowClient(server.uri).get_run(tracker.run_id).info.status == "FINISHED"
    assert sync(tmp_path / "run") == 0


def test_sync_of_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run of mvl_dist/train.py"):
        sync(tmp_path)


def test_the_journal_is_plain_json_lines(tmp_path: Path, sqlite: str) -> None:
    tracker = start(tmp_path / "run", sqlite)
    tracker.metrics(3, loss=0.25)
    tracker.close("FINISHED")
    lines = [json.loads(line) for line in (tmp_path / "run" / JOURNAL).read_text().splitlines()]
    assert lines[0]["op"] == "start"
    assert (lines[1]["step"], lines[1]["values"]) == (3, {"loss": 0.25})
    assert lines[-1]["status"] == "FINISHED"
