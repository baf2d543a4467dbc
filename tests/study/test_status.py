"""What MLflow says of a study, with a real database, and who holds a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from mvl_dist.study.command import main
from mvl_dist.study.grid import StudyRun, load_study
from mvl_dist.study.status import is_open, states
from mvl_dist.tracking import Tracker
from tests.study.test_grid import OWN, write
from tests.study.test_lease import hold


@pytest.fixture
def runs(tmp_path: Path) -> tuple[StudyRun, ...]:
    return load_study(write(tmp_path, OWN)).runs[:6]


def track(tmp_path: Path, run: StudyRun, status: str, checksum: str = "now") -> None:
    """An MLflow run as train.py leaves it."""
    folder = tmp_path / "task" / f"{run.key}-{status}-{checksum}"
    folder.mkdir(parents=True)
    tracker = Tracker(folder, f"sqlite:///{tmp_path / 'mlflow.db'}", run.config.experiment, "x")
    tracker.tags({"key": run.key, "data_checksum": checksum})
    if status != "RUNNING":
        assert tracker.close(status) == ""  # type: ignore[arg-type]
    else:
        tracker.flush()


def test_each_state_is_told_from_the_others(tmp_path: Path, runs: tuple[StudyRun, ...]) -> None:
    done, stale, failed, killed, died, _ = runs
    track(tmp_path, done, "FAILED")
    track(tmp_path, done, "FINISHED")  # of two, the one that was finished counts
    track(tmp_path, stale, "FINISHED", checksum="before")
    track(tmp_path, failed, "FAILED")
    track(tmp_path, killed, "KILLED")
    track(tmp_path, died, "RUNNING")
    checksums = {run.key: "now" for run in runs}
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = [states(runs, uri, tmp_path, checksums)[run.key].state for run in runs]
    assert found == ["done", "stale", "failed", "interrupted", "interrupted", "missing"]
    assert [is_open(state, retry_failed=False) for state in found] == [
        *(False, True, False),
        *(True, True, True),
    ]
    assert is_open("failed", retry_failed=True)
    assert [states([run], uri, tmp_path, checksums)[run.key].state for run in runs] == found


def test_a_run_is_running_while_another_process_holds_its_lease(
    tmp_path: Path, runs: tuple[StudyRun, ...]
) -> None:
    key = runs[0].key
    holder = hold(tmp_path, key)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert states(runs[:1], uri, tmp_path, {})[key].state == "running"
    holder.kill()
    holder.wait()
    assert states(runs[:1], uri, tmp_path, {})[key].state == "missing"


def test_asking_for_the_state_makes_no_database(tmp_path: Path, runs: tuple[StudyRun, ...]) -> None:
    file = str(write(tmp_path, OWN))
    assert main(["status", file, "--output", str(tmp_path / "none")]) == 0
    assert not (tmp_path / "none").exists()


def test_next_prints_the_command_of_a_missing_run(
    tmp_path: Path, runs: tuple[StudyRun, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    track(tmp_path, runs[0], "FINISHED")
    main(["next", str(write(tmp_path, OWN)), "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"--where key={runs[1].key}" in printed
    assert str(replace(runs[1])) in printed
