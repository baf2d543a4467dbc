"""`mvl study pack`: several runs at once, through a killed rank and a stop, each trained once."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from mvl_dist.study.lease import holder
from tests.system.launching import curve_of, environment, wait_for

pytestmark = pytest.mark.tworank
EPOCHS = 20


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    settings = {
        "name": "four",
        "preset": "smoke",
        "set": {
            "data": {"grid": [16, 16, 16], "target": "binary"},
            "model": {"depth": 2},
            "optim": {"epochs": EPOCHS, "batch_size": 1},
        },
        "tasks": ["Task93_PhantomLesion"],
        "folds": [0, 1, 2],
        "tables": {"only": {"models": ["vit_baseline"]}},
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def start(study: Path, store: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mvl_dist.cli", "study", "pack", str(study), "--slots", "2"),
            *("--launcher", "cpu1", "--store", str(store)),
            *("--output", str(study.parent / "runs")),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "accelerate.commands.launch" not in child.cmdline()
        and any(word.endswith("train_study.py") for word in child.cmdline())
    ]


def checkpoints(study: Path) -> list[Path]:
    return list(study.parent.glob("runs/*/*/checkpoints/last.json"))


def test_two_at_a_time_through_a_killed_rank_and_a_stop(study: Path, phantom_store: Path) -> None:
    first = start(study, phantom_store)
    wait_for(lambda: len(checkpoints(study)) == 2, first)  # two runs are under way
    ranks(first)[0].kill()
    wait_for(lambda: len(checkpoints(study)) == 3, first)
    first.send_signal(signal.SIGTERM)
    output, errors = first.communicate(timeout=120)
    assert (first.returncode, errors) == (128, "")
    assert output.count("FAILED (status 1") == 1
    second = start(study, phantom_store)
    output, errors = second.communicate(timeout=300)
    assert second.returncode == 0, (output, errors)
    runs = MlflowClient(f"sqlite:///{study.parent / 'runs' / 'mlflow.db'}").search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    for folder in study.parent.glob("runs/*/*/config.yaml"):
        assert list(curve_of(folder.parent, "epoch").values()) == list(range(1, EPOCHS + 1))
    # A rank that is stopped at its very end may leave a lease behind, which holds nothing.
    keys = {path.stem for path in (study.parent / "runs" / "claims").iterdir()}
    assert [holder(study.parent / "runs", key) for key in keys] == [""] * len(keys)


def test_without_a_gpu_it_asks_how_many_to_run_on_the_cpu(study: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mvl_dist.cli", "study", "pack", str(study)],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: no GPU here: pass --slots N --launcher cpu1 to train N runs on the CPU\n"
    )
