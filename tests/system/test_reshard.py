"""A checkpoint goes on in every ZeRO stage, precision and number of ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.launching import REPO, environment

pytestmark = [pytest.mark.tworank, pytest.mark.slow]
# Weights of another precision give other losses: bfloat16 keeps 8 bits.
OTHER_PRECISION, OTHER_ORDER_OF_SUMS = 2e-3, 1e-6


def on_ranks(ranks: int, action: str, folder: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)),
        *("--standalone", "-m", "tests.system.reshard_ranks", action, str(folder)),
    ]
    done = subprocess.run(
        command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_goes_on_in_every_stage_precision_and_number_of_ranks(tmp_path: Path) -> None:
    on_ranks(2, "save", tmp_path)
    for ranks in (2, 1):
        on_ranks(ranks, "load", tmp_path)
        rows = json.loads((tmp_path / f"loaded-{ranks}.json").read_text())
        assert len({(row["from"], row["to"]) for row in rows}) == 8 * 8
        for row in rows:
            assert (row["step"], row["seen"]) == (3, 3.0)
            if row["from"].split("-")[1] != row["to"].split("-")[1]:
                tolerance = OTHER_PRECISION
            elif ranks == 1:
                tolerance = OTHER_PRECISION if "bf16" in row["to"] else OTHER_ORDER_OF_SUMS
            else:
                tolerance = 0.0
            expected = pytest.approx(row["expected"], rel=tolerance, abs=0)
            assert row["losses"] == expected, (row["from"], row["to"])
        assert not list(tmp_path.glob("*/checkpoints/.partial-*"))
