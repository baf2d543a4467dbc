"""What goes wrong on a cluster in the middle of a run: it is named, and nothing is lost."""

import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from mvl_dist.splits import Split, make_split
from mvl_dist.store import read_manifest, write_manifest
from tests.system.launching import (
    REPO,
    TRACES,
    command,
    curve,
    curve_of,
    environment,
    launch,
    run_folder,
    wait_for,
)

pytestmark = pytest.mark.tworank
TASK = "Task91_PhantomTumour"


@pytest.fixture
def arguments(arguments: list[str]) -> list[str]:
    """The baseline: no fault here is the language model's, and it starts in half the time."""
    return [*arguments, "--model", "vit_baseline"]


@pytest.fixture
def store(phantom_store: Path, tmp_path: Path) -> Path:
    """A store of its own, to be damaged."""
    return Path(shutil.copytree(phantom_store, tmp_path / "store"))


@pytest.fixture
def split(store: Path) -> Split:
    manifest = read_manifest(store, TASK)
    return make_split(tuple(manifest.cases), TASK, 0, seed=manifest.split_seed)


def start(arguments: list[str], output: Path, **changes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command([*arguments, "--epochs", "200", "--output", str(output)]),
        cwd=REPO,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The launch's ranks, in their order."""
    children = psutil.Process(process.pid).children()
    found = [child for child in children if "train.py" in " ".join(child.cmdline())]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def checkpointed(output: Path) -> bool:
    return bool(list(output.glob("*/*/checkpoints/last.json")))


def one_line(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(trace in output + errors for trace in TRACES), errors
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert len(lines) == 1, errors
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_stands_still_is_named_and_the_launch_ends(
    hung: int, arguments: list[str], tmp_path: Path
) -> None:
    process = start(arguments, tmp_path, MVL_STALL_SECONDS="8")
    wait_for(lambda: checkpointed(tmp_path), process)
    ranks(process)[hung].send_signal(signal.SIGSTOP)  # as a disk does that never answers
    stopped = time.monotonic()
    line = one_line(process)
    assert time.monotonic() - stopped < 60
    assert f"the others wait for rank {hung} on " in line
    assert "goes on from the last checkpoint" in line


def test_a_nan_that_one_rank_meets_stops_both(
    arguments: list[str], store: Path, split: Split, tmp_path: Path
) -> None:
    image = zarr.open_array(store / TASK / "cases" / split.train[0] / "image", mode="a")
    values = np.asarray(image[...])
    values[0, 4, 4, 4] = np.nan
    image[...] = values
    done = launch([*arguments, "--store", str(store), "--output", str(tmp_path / "runs")])
    assert "the loss is not finite at step" in done.one_line()


def test_a_store_that_is_replaced_under_a_run_stops_it(
    arguments: list[str], store: Path, tmp_path: Path
) -> None:
    process = start([*arguments, "--store", str(store)], tmp_path / "runs")
    wait_for(lambda: checkpointed(tmp_path / "runs"), process)
    manifest = read_manifest(store, TASK)
    name, info = next(iter(manifest.cases.items()))
    other = replace(info, arrays={**info.arrays, "label": "0" * 64})
    write_manifest(store, replace(manifest, cases={**manifest.cases, name: other}))
    line = one_line(process)
    assert "was replaced while this run was training" in line
    assert max(curve(tmp_path / "runs", "epoch")) > 0  # its checkpoints stay


@pytest.mark.slow
def test_a_run_that_is_being_trained_is_not_trained_twice(
    arguments: list[str], tmp_path: Path
) -> None:
    process = start(arguments, tmp_path)
    wait_for(lambda: checkpointed(tmp_path), process)
    again = launch([*arguments, "--epochs", "200", "--output", str(tmp_path)])
    first = ranks(process)[0].pid
    assert "this run is being trained already by" in again.one_line()
    assert f"process {first}" in again.one_line()
    assert process.poll() is None  # and the first is not disturbed
    for rank in ranks(process):
        rank.kill()
    process.communicate(timeout=60)


@pytest.mark.slow
def test_a_setting_changed_of_an_unfinished_run_is_refused_and_can_be_forced(
    arguments: list[str], tmp_path: Path
) -> None:
    output = ["--output", str(tmp_path / "runs")]
    short = launch([*arguments, *output, "--epochs", "2"], ranks=1)
    assert short.code == 0, short.errors
    folder = run_folder(tmp_path / "runs")
    last = folder / "checkpoints" / "last.json"
    last.write_text(last.read_text().replace('"finished": true', '"finished": false'))

    refused = launch([*arguments, *output, "--epochs", "4"], ranks=1).one_line()
    assert f"{folder} is unfinished and differs in optim.epochs 2 -> 4" in refused

    forced = [*arguments, "--epochs", "4", "--resume-from", str(folder)]
    longer = launch([*forced, "--output", str(tmp_path / "longer")], ranks=1)
    assert longer.code == 0, longer.errors
    assert f"goes on from step {max(curve_of(folder))} of {folder}" in longer.output
    whole = launch([*arguments, "--epochs", "4", "--output", str(tmp_path / "whole")], ranks=1)
    assert whole.code == 0, whole.errors
    rest = {
        step: v for step, v in curve(tmp_path / "whole").items() if step > max(curve_of(folder))
    }
    assert rest
    assert curve(tmp_path / "longer") == rest
