"""The main job with its store in an object store 20 ms away, as a user launches it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.object_server import ObjectServer, object_server
from tests.system.launching import REPO, command, curve, environment, launch, run_folder, wait_for

pytestmark = [pytest.mark.tworank, pytest.mark.slow]
STORE = "s3://data/my/store"


@pytest.fixture(scope="module")
def server(phantom_store: Path) -> Iterator[ObjectServer]:
    with object_server(latency_s=0.02) as running:
        running.upload(phantom_store, "data", "my/store/", at_once=16)
        yield running


def from_afar(arguments: list[str]) -> list[str]:
    """The same run with its store elsewhere and a loader process a rank."""
    at = arguments.index("--store") + 1
    return [*arguments[:at], STORE, *arguments[at + 1 :], "--workers", "1"]


def test_a_training_interrupted_and_resumed_is_that_of_a_folder(
    arguments: list[str], server: ObjectServer, tmp_path: Path
) -> None:
    rest = ["--epochs", "6", "--output"]
    near = launch([*arguments, *rest, str(tmp_path / "near")])
    assert near.code == 0, near.errors

    far = [*from_afar(arguments), *rest, str(tmp_path / "far")]
    process = subprocess.Popen(
        command(far),
        cwd=REPO,
        env=environment(**server.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: bool(list(tmp_path.glob("far/*/*/checkpoints/last.json"))), process)
    # As Slurm does: the ranks, and what they started.
    for rank in psutil.Process(process.pid).children():
        for each in (rank, *rank.children(recursive=True)):
            each.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "SIGTERM: saved at step" in output
    assert len(curve(tmp_path / "far")) < len(curve(tmp_path / "near"))
    done = launch(far, **server.environment)
    assert done.code == 0, done.errors
    # The same run, by name and to the last digit.
    assert run_folder(tmp_path / "far").name == run_folder(tmp_path / "near").name
    for key in ("train_loss", "val_dice"):
        assert curve(tmp_path / "far", key) == curve(tmp_path / "near", key)

    again = subprocess.run(
        [sys.executable, "-m", "mvl_dist.cli", "evaluate", str(run_folder(tmp_path / "far"))],
        capture_output=True,
        text=True,
        env=environment(**server.environment),
    )
    assert again.returncode == 0, again.stderr
    assert "NSD at" in again.stdout


def test_a_launch_with_wrong_keys_is_one_line(
    arguments: list[str], phantom_store: Path, tmp_path: Path
) -> None:
    with object_server() as locked:
        locked.upload(phantom_store, "data", "my/store/", at_once=16)
        locked.lock()
        done = launch(
            [*from_afar(arguments), "--output", str(tmp_path)],
            **{**locked.environment, "AWS_ACCESS_KEY_ID": "other"},
        )
    assert "access refused (InvalidAccessKeyId)" in done.one_line()
