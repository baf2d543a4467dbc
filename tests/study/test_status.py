"""What MLflow says of a study, with a real database, and who holds a run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mvl_dist.study.claims import claim, is_claimed
from mvl_dist.study.command import main
from mvl_dist.study.grid import StudyRun, load_study
from mvl_dist.study.status import is_open, states
from mvl_dist.tracking import Tracker
from tests.study.test_grid import OWN, write


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
    checksums = {run.config.data.task: "now" for run in runs}
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = [states(runs, uri, tmp_path, checksums)[run.key].state for run in runs]
    assert found == ["done", "stale", "failed", "interrupted", "interrupted", "missing"]
    assert [is_open(state, retry_failed=False) for state in found] == [
        *(False, True, False),
        *(True, True, True),
    ]
    assert is_open("failed", retry_failed=True)
    assert [states([run], uri, tmp_path, checksums)[run.key].state for run in runs] == found


HOLD = """
import sys
from pathlib import Path
from mvl_dist.study.claims import claim
with claim(Path(sys.argv[1]), sys.argv[2]) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_run_is_held_by_one_process_and_freed_by_its_death(
    tmp_path: Path, runs: tuple[StudyRun, ...]
) -> None:
    key = runs[0].key
    command = [sys.executable, "-c", HOLD, str(tmp_path), key]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "True\n"
        assert is_claimed(tmp_path, key)
        with claim(tmp_path, key) as mine:
            assert not mine
        found = states(runs[:1], f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, {})
        assert found[key].state == "running"
        holder.kill()
    assert not is_claimed(tmp_path, key)
    with claim(tmp_path, key) as mine:
        assert mine
        assert not is_claimed(tmp_path, key)  # its own run is free to itself


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
