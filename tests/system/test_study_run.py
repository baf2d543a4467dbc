"""`mvl study run`: unattended, through a killed rank and a stop, and nothing is trained twice."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.system.launching import curve_of, environment, wait_for

pytestmark = [pytest.mark.tworank, pytest.mark.slow]
EPOCHS = 20


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two runs that take long enough to be disturbed."""
    file = tmp_path / "study.yaml"
    settings = {
        "name": "two",
        "preset": "smoke",
        "set": {
            "data": {"grid": [16, 16, 16], "target": "binary"},
            "model": {"depth": 2},
            "optim": {"epochs": EPOCHS, "batch_size": 1},
        },
        "tasks": ["Task93_PhantomLesion"],
        "folds": [0, 1],
        "tables": {"only": {"models": ["vit_baseline"]}},
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def start(study: Path, store: Path, action: str = "run") -> "subprocess.Popen[str]":
    output = study.parent / "runs"
    launcher = ("--launcher", "cpu1") if action == "run" else ()
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mvl_dist.cli", "study", action, str(study), *launcher),
            *("--store", str(store), "--output", str(output)),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def state(study: Path, store: Path) -> list[int]:
    """done, running, interrupted, failed, stale, missing, as `mvl study status` prints them."""
    output = finish(start(study, store, "status"))
    (line,) = re.findall(r"^\s+all\s+(.+)$", output, re.MULTILINE)
    return [int(number) for number in line.split()]


def rank(process: "subprocess.Popen[str]") -> psutil.Process:
    (found,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "accelerate.commands.launch" not in child.cmdline()
        and any(word.endswith("train_study.py") for word in child.cmdline())
    )
    return found


def checkpoints(study: Path) -> list[Path]:
    return list(study.parent.glob("runs/*/*/checkpoints/last.json"))


def test_a_killed_rank_and_a_stop_cost_no_run_and_a_last_start_does_nothing(
    study: Path, phantom_store: Path
) -> None:
    first = start(study, phantom_store)
    wait_for(lambda: bool(checkpoints(study)), first)
    rank(first).kill()  # as the kernel does when memory runs out
    wait_for(lambda: len(checkpoints(study)) == 2, first)  # it went on by itself
    first.send_signal(signal.SIGTERM)
    output, errors = first.communicate(timeout=120)
    assert first.returncode == 1, errors
    assert "SIGTERM: saved at step" in output
    assert state(study, phantom_store) == [1, 0, 1, 0, 0, 0]
    assert "1 runs trained, 0 failed" in finish(start(study, phantom_store))
    assert state(study, phantom_store) == [2, 0, 0, 0, 0, 0]
    assert "nothing is open among 2 runs" in finish(start(study, phantom_store))
    assert len(checkpoints(study)) == 2
    for folder in study.parent.glob("runs/*/*/config.yaml"):
        assert list(curve_of(folder.parent, "epoch").values()) == list(range(1, EPOCHS + 1))


def test_a_run_that_keeps_killing_its_launch_fails_and_the_others_are_trained(
    study: Path, phantom_store: Path
) -> None:
    process = start(study, phantom_store)
    for _ in range(2):
        wait_for(lambda: bool(checkpoints(study)), process)
        victim = rank(process)
        victim.kill()
        victim.wait(60)
        (folder,) = study.parent.glob("runs/*/*/checkpoints")
        shutil.rmtree(folder)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "fold 0 ended its launch twice, is marked as failed" in output, errors
    assert state(study, phantom_store) == [1, 0, 0, 1, 0, 0]
