"""A run is held by one process at a time, however the others die and whatever their clocks say."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from mvl_dist.errors import UserError
from mvl_dist.study import lease as module
from mvl_dist.study.lease import FOLDER, holder, lease


def lease_files(output: Path) -> list[str]:
    return sorted(path.name for path in (output / FOLDER).iterdir())


def of_another_machine(output: Path, seconds_ago: float) -> Path:
    """A lease as another node would have left it."""
    path = output / FOLDER / "run.0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "node7", "machine": "boot x", "pid": 12, "job": "34"}))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def hold(output: Path, key: str = "run") -> "subprocess.Popen[str]":
    """Another process that holds the run until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from mvl_dist.study.lease import lease\n"
        "with lease(Path(sys.argv[1]), sys.argv[2]) as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(output), key], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_one_process_holds_a_run_and_gives_it_back(tmp_path: Path) -> None:
    with lease(tmp_path, "run") as mine:
        assert mine
        assert holder(tmp_path, "run") == ""  # to itself it is free
        with lease(tmp_path, "run") as again:
            assert not again
        with lease(tmp_path, "other") as other:
            assert other
    assert lease_files(tmp_path) == []


def test_others_see_who_holds_it_until_he_is_killed(tmp_path: Path) -> None:
    process = hold(tmp_path)
    assert f"process {process.pid}" in holder(tmp_path, "run")
    with lease(tmp_path, "run") as mine:
        assert not mine
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert holder(tmp_path, "run") == ""
    with lease(tmp_path, "run") as mine:
        assert mine  # at once: his process is known to be gone


def test_a_node_that_is_gone_is_waited_for_as_long_as_a_lease_lasts(tmp_path: Path) -> None:
    of_another_machine(tmp_path, seconds_ago=module.LEASE_SECONDS - 30)
    assert holder(tmp_path, "run") == "node7, process 12, job 34"
    with lease(tmp_path, "run") as mine:
        assert not mine
    of_another_machine(tmp_path, seconds_ago=module.LEASE_SECONDS + 30)
    with lease(tmp_path, "run") as mine:
        assert mine
        assert lease_files(tmp_path) == ["run.1"]


def test_a_clock_that_is_wrong_by_hours_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_another_machine(tmp_path, seconds_ago=0)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this node's clock, years ahead
    with lease(tmp_path, "run") as mine:
        assert not mine


def test_a_holder_keeps_his_lease_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVL_LEASE_SECONDS", "0.6")
    with lease(tmp_path, "run") as mine:
        assert mine
        path = tmp_path / FOLDER / "run.0"
        first = path.stat().st_mtime
        time.sleep(0.5)
        assert path.stat().st_mtime > first


def test_who_was_frozen_for_too_long_is_told_that_he_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVL_LEASE_SECONDS", "0.6")
    told: list[str] = []
    with lease(tmp_path, "run", lost=told.append):
        (tmp_path / FOLDER / "run.0").unlink()
        successor = tmp_path / FOLDER / "run.0"  # another one's, under the same name
        successor.write_text("{}")
        old = successor.stat().st_mtime
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "another process trains this run now" in told[0]
    assert successor.stat().st_mtime == old  # neither kept young nor deleted by the loser
    assert successor.exists()


def contend(output: Path, together: Barrier, results: "multiprocessing.Queue[int]") -> None:
    together.wait(60)
    with lease(output, "run") as mine:
        together.wait(60)  # held until all have asked
    results.put(mine)


@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_that_ask_at_once_one_gets_it(tmp_path: Path, left_behind: bool) -> None:
    if left_behind:
        of_another_machine(tmp_path, seconds_ago=module.LEASE_SECONDS + 30)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    together = context.Barrier(16)
    processes = [
        context.Process(target=contend, args=(tmp_path, together, results)) for _ in range(16)
    ]
    for process in processes:
        process.start()
    assert sum(results.get(timeout=90) for _ in processes) == 1
    for process in processes:
        process.join()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(UserError, match="choose another --output"), lease(tmp_path, "run"):
        pass
