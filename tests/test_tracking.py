import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mvl_dist.ended_runs import fail_for_rank_0, sync
from mvl_dist.errors import UserError
from mvl_dist.journal import JOURNAL
from mvl_dist.sync import main as sync_command
from mvl_dist.tracked import search_runs
from mvl_dist.tracking import Tracker, default_uri
from tests.debian import NotInstalledError
from tests.servers import MLflowServer, mlflow_server, postgres


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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MLflowServer]:
    with mlflow_server(tmp_path) as running:
        yield running


def test_a_server_that_goes_away_loses_no_metric_and_stops_nothing(
    tmp_path: Path, server: MLflowServer
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


def test_a_run_that_another_rank_ends_is_failed_and_sync_tells_a_server_that_was_away(
    tmp_path: Path, server: MLflowServer
) -> None:
    tracker = start(tmp_path / "run", server.uri)
    assert tracker.flush()
    client = MlflowClient(server.uri)
    fail_for_rank_0(tmp_path / "run")
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    client.update_run(tracker.run_id, "RUNNING")
    server.kill()
    fail_for_rank_0(tmp_path / "run")
    server.start()
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    assert sync(tmp_path / "run") == 1
    assert client.get_run(tracker.run_id).info.status == "FAILED"


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


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MLflowServer]:
    """A server as jobs share one, over either database."""
    if request.param == "sqlite":
        with mlflow_server(tmp_path) as running:
            yield running
        return
    try:
        with postgres(tmp_path / "pg") as database, mlflow_server(tmp_path, database) as running:
            yield running
    except NotInstalledError as reason:
        pytest.skip(str(reason))


def test_sixteen_runs_write_at_once_through_a_killed_server_and_nothing_is_lost(
    tmp_path: Path, shared_server: MLflowServer
) -> None:
    trackers = [start(tmp_path / "out" / "task" / f"{n}", shared_server.uri) for n in range(16)]

    def write(number: int, first: int) -> None:
        for step in range(first, first + 100):
            trackers[number].metrics(step, loss=number + step / 1000)
        trackers[number].flush()

    def all_write(first: int) -> None:
        threads = [threading.Thread(target=write, args=(n, first)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_write(0)
    shared_server.kill()
    all_write(100)
    shared_server.start()
    all_write(200)
    for number, tracker in enumerate(trackers):
        assert tracker.close("FINISHED") == ""
        expected = [(step, number + step / 1000) for step in range(300)]
        assert history(shared_server.uri, tracker) == expected


# ---------------------------------------------------------------------------------- the spool


def test_a_node_without_a_network_spools_and_sync_sends_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run = tmp_path / "out", tmp_path / "out" / "task" / "run"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "spool:")
    tracker = start(run, default_uri(output))
    tracker.tags({"key": "abc"})
    tracker.metrics(1, loss=0.5)
    (entry,) = search_runs(default_uri(output), "tests")
    assert (entry.info.status, entry.data.tags["key"]) == ("RUNNING", "abc")
    assert tracker.close("FINISHED") == ""
    (entry,) = search_runs(default_uri(output), "tests")
    assert (entry.info.status, entry.data.metrics) == ("FINISHED", {"loss": 0.5})
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to the server it goes to"):
        sync(run)
    uri = f"sqlite:///{tmp_path / 'later.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert sync_command([str(output)]) == 0
    assert sync_command([str(output)]) == 0  # a second time there is nothing to send
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (sent,) = client.search_runs([experiment.experiment_id])
    assert (sent.info.status, sent.info.run_name) == ("FINISHED", "run")
    points = client.get_metric_history(sent.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5)]
    lines = [json.loads(line) for line in (run / JOURNAL).read_text().splitlines()]
    assert sent.info.start_time == lines[0]["time_ms"]


def test_a_server_that_moved_goes_on_with_the_run_and_another_database_gets_all_of_it(
    tmp_path: Path, sqlite: str
) -> None:
    first = start(tmp_path / "run", sqlite)
    first.metrics(1, loss=1.0)
    first.close("KILLED")
    same = tmp_path / "moved.db"
    (tmp_path / "mlflow.db").rename(same)
    second = start(tmp_path / "run", f"sqlite:///{same}")
    second.metrics(2, loss=0.5)
    second.close("KILLED")
    assert second.run_id == first.run_id
    third = start(tmp_path / "run", f"sqlite:///{tmp_path / 'other.db'}")
    assert third.close("FINISHED") == ""
    assert third.run_id != first.run_id
    assert history(third.uri, third) == [(1, 1.0), (2, 0.5)]


def test_a_sweep_waits_for_a_server_that_is_away(
    tmp_path: Path, server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVL_MLFLOW_WAIT_SECONDS", "60")
    server.kill()
    threading.Timer(1.0, server.start).start()
    tracker = start(tmp_path / "run", server.uri)
    assert tracker.close("FINISHED") == ""
