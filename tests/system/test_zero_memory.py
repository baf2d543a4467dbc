"""ZeRO-3 with all 30 layers of SmolLM2: each of two ranks holds its share, as planned."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvl_dist.memory import rank_memory
from mvl_dist.models.donors.extract import extract
from mvl_dist.models.layers import layers_of
from tests.system.launching import REPO, deepspeed_config, environment
from tests.system.memory_ranks import GRID, model_config

pytestmark = [pytest.mark.tworank, pytest.mark.slow]
DONOR_WEIGHTS = 106_195_968  # 30 blocks of SmolLM2-135M and its last norm
# What glibc gives back is resident no longer; by default it keeps what it may need again.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measured(ranks: int, donor: Path, config: Path) -> list[dict[str, int]]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(ranks), "-m", "tests.system.memory_ranks"),
        *(str(donor), str(config)),
    ]
    done = subprocess.run(
        command,
        cwd=REPO,
        env=environment(**GIVE_BACK),
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("REPORT "))
    return list(json.loads(line.removeprefix("REPORT ")))


def test_each_rank_holds_its_share_of_a_donor_of_thirty_layers(tmp_path: Path) -> None:
    donor = extract("smollm2-135m", "all", tmp_path / "all").folder
    config = deepspeed_config(tmp_path, 3)
    layers = layers_of(model_config(str(donor)), GRID)
    assert sum(layers.frozen) > DONOR_WEIGHTS
    resident = {}
    for ranks in (1, 2):
        plan = rank_memory(layers, json.loads(config.read_text()), ranks, ranks)
        # Between two steps there are no gradients and nothing is gathered.
        planned = plan.weights + plan.optimizer + plan.buckets
        rows = measured(ranks, donor, config)
        assert len(rows) == ranks
        for row in rows:
            assert row["stage"] == 3
            assert row["live_bytes"] == pytest.approx(planned, rel=0.01)
        resident[ranks] = max(row["resident_bytes"] for row in rows)
    # Half of the weights is gone from each rank; the rest of a process is the same.
    assert resident[1] - resident[2] > 0.9 * 4 * DONOR_WEIGHTS / 2
