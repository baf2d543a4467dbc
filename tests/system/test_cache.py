"""The node's cache in a training as a user runs it: the same curve, and nothing left behind."""

import subprocess
from pathlib import Path

import psutil
import pytest

from mvl_dist.cache_folder import choose
from tests.system.launching import REPO, command, curve, environment, wait_for

pytestmark = pytest.mark.tworank


def folder_of(store: Path) -> Path:
    choice = choose(str(store.resolve()), "auto", [])
    assert choice is not None
    return choice.folder


def start(arguments: list[str], output: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command([*arguments, *more, "--output", str(output)]),
        cwd=REPO,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def held(folder: Path) -> bool:
    return bool(list(folder.glob("*.image.*.npy")))


def test_a_training_by_workers_through_the_cache_is_the_one_without_and_leaves_nothing(
    arguments: list[str], phantom_store: Path, tmp_path: Path
) -> None:
    folder = folder_of(phantom_store)
    cached = start(arguments, tmp_path / "cached", "--epochs", "2", "--workers", "2")
    wait_for(lambda: held(folder), cached)
    _, errors = cached.communicate(timeout=300)
    assert (cached.returncode, errors) == (0, "")
    assert not folder.exists()
    plain = start(arguments, tmp_path / "plain", "--epochs", "2", "--cache-gb", "0")
    _, errors = plain.communicate(timeout=300)
    assert plain.returncode == 0, errors
    assert curve(tmp_path / "cached") == curve(tmp_path / "plain")
    assert curve(tmp_path / "cached", "val_dice") == curve(tmp_path / "plain", "val_dice")


@pytest.mark.slow
def test_a_mistake_found_late_and_a_kill_leave_nothing_that_the_next_start_does_not_remove(
    arguments: list[str], phantom_store: Path, tmp_path: Path
) -> None:
    folder = folder_of(phantom_store)
    diverging = start(arguments, tmp_path / "bad", "--epochs", "50", "--lr", "1e30")
    _, errors = diverging.communicate(timeout=300)
    assert "diverged" in errors
    assert not folder.exists()

    killed = start(arguments, tmp_path / "killed", "--epochs", "50")
    wait_for(lambda: held(folder), killed)
    for process in (*psutil.Process(killed.pid).children(recursive=True), killed):
        process.kill()
    killed.communicate(timeout=60)
    assert held(folder)
    again = start(arguments, tmp_path / "again", "--epochs", "1")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert not folder.exists()
