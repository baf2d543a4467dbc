"""Models of crops on two ranks: unequal windows under ZeRO-3, a kill, and the same curve."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from mvl_dist.inference import forward_calls
from mvl_dist.metrics import GRID_METRICS, METRICS
from mvl_dist.runs import load_trained
from mvl_dist.sharing import share_by_size
from mvl_dist.store import read_manifest
from tests.system.launching import (
    REPO,
    always_gathering,
    command,
    curve,
    deepspeed_config,
    environment,
    launch,
    run_folder,
    wait_for,
)

pytestmark = pytest.mark.tworank


@pytest.fixture(scope="module")
def spaced(phantom_store: Path) -> list[str]:
    """Crops of a CT whose scans differ in size; augmented, softmax-free, a ViT of two blocks."""
    return [
        *("--preset", "smoke", "--store", str(phantom_store), "--task", "93"),
        *("--resolution", "spaced", "--grid", "16", "32", "32", "--patch", "8", "8", "8"),
        *("--model", "vit_baseline", "--depth", "2", "--width", "16", "--heads", "2"),
        *("--patches-per-case", "2", "--batch-size", "2", "--epochs", "3"),
    ]


@pytest.fixture(scope="module")
def one_rank(spaced: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one")
    done = launch([*spaced, "--output", str(output)], 1, deepspeed_config(output, 0))
    assert done.code == 0, done.errors
    return output


@pytest.mark.slow
def test_two_ranks_under_zero_3_killed_and_resumed_follow_the_curve_of_one_rank(
    spaced: list[str], one_rank: Path, tmp_path: Path
) -> None:
    plan, _ = load_trained(run_folder(one_rank))
    shapes = [plan.manifest.cases[case].spaced_shape for case in plan.split.validation]
    calls = {n: forward_calls(shape, plan.recipe) for n, shape in enumerate(shapes) if shape}
    totals = [sum(calls[n] for n in share_by_size(list(calls), calls, r, 2)) for r in range(2)]
    assert totals[0] != totals[1]  # one rank must wait for the other's windows
    zero3 = always_gathering(deepspeed_config(tmp_path, 3))
    arguments = [*spaced, "--output", str(tmp_path / "runs")]
    process = subprocess.Popen(
        command(arguments, 2, zero3),
        cwd=REPO,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: bool(list(tmp_path.glob("runs/*/*/checkpoints/last.json"))), process)
    ranks = [
        p for p in psutil.Process(process.pid).children() if "train.py" in " ".join(p.cmdline())
    ]
    ranks[1].kill()
    process.communicate(timeout=120)
    done = launch(arguments, 2, zero3)
    assert done.code == 0, done.errors
    assert "2 ranks, DeepSpeed ZeRO-3" in done.output
    steps = math.ceil(2 * len(plan.split.train) / 2)
    for key in ("train_loss", "val_loss", "val_dice"):
        expected = curve(one_rank, key)
        assert len(expected) == (3 * steps if key == "train_loss" else 3)
        # Two ranks sum in another order: float32 rounding, grown over the steps.
        found = curve(tmp_path / "runs", key)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), key


def test_it_is_scored_on_the_scans_own_grid_and_beside_it_on_the_stores(
    one_rank: Path, phantom_store: Path
) -> None:
    folder = run_folder(one_rank)
    manifest = read_manifest(phantom_store, "93")
    with (folder / "test_cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == set(manifest.test_cases)
    assert {*METRICS, *GRID_METRICS} <= rows[0].keys()
    about = json.loads((folder / "run.json").read_text())
    assert about["spacing_mm"] == list(manifest.spacing_mm or ())
    assert about["data_checksum"] == manifest.spaced_checksum != manifest.checksum
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["resolution"] == "spaced"
    assert (folder / "report" / "showcase.npz").is_file()
    assert (folder / "test_overlay.png").is_file()
