"""Batches by worker processes: the same, and what is said when one fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from mvl_dist.data import Batch, CaseDataset, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.loading import BatchLoader, timed
from mvl_dist.store import read_manifest

REPO = Path(__file__).resolve().parent.parent


def test_worker_processes_give_the_same_batches(phantom_store: Path) -> None:
    manifest = read_manifest(phantom_store, "93")
    dataset = CaseDataset(phantom_store, manifest, sorted(manifest.cases), "first", "binary")
    loaders = [BatchLoader(dataset, RankBatches(8, 4, 0, 1, seed=0), n) for n in (0, 1)]
    for here, there in zip(*loaders, strict=True):
        assert here["case"] == there["case"]
        torch.testing.assert_close(here["image"], there["image"], rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_one_line_whoever_reads_it(
    phantom_store: Path, tmp_path: Path, workers: int
) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    manifest = read_manifest(store, "93")
    cases = sorted(manifest.cases)
    chunk = store / manifest.task.name / "cases" / cases[2] / "label" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    dataset = CaseDataset(store, manifest, cases, "first", "binary")
    with pytest.raises(UserError) as caught:
        list(BatchLoader(dataset, RankBatches(len(cases), 2, 0, 1, seed=0), workers))
    assert len(str(caught.value).splitlines()) == 1
    assert f"--leave-out {cases[2]}" in str(caught.value)


class Killed(Dataset[Batch]):
    """A machine that is out of memory."""

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_a_killed_worker_is_one_line_that_says_what_to_lower() -> None:
    with pytest.raises(UserError, match=r"lower --workers \(now 1\)") as caught:
        list(BatchLoader(Killed(), RankBatches(4, 2, 0, 1, seed=0), workers=1))
    assert len(str(caught.value).splitlines()) == 1


def test_the_wait_for_a_batch_counts_the_loader_and_not_the_step() -> None:
    def slow_loader() -> Iterator[dict[str, int]]:
        for number in range(3):
            time.sleep(0.05)
            yield {"number": number}

    waits = []
    for batch, wait_ms in timed(slow_loader()):
        assert batch["number"] == len(waits)
        waits.append(wait_ms)
        time.sleep(0.2)  # the training step
    # No upper bound near 50: a busy machine sleeps longer, but a step counted in would be 200 more.
    assert len(waits) == 3
    assert all(wait_ms >= 49 for wait_ms in waits)
    assert min(waits) < 200


TWO_RANKS = """
import sys
import torch, torch.distributed as dist
from mvl_dist.distributed import sums_and_largest
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
print(sums_and_largest(torch.tensor([1.0 + rank, 0.5]), own=(30.0, 10.0)[rank]))
dist.destroy_process_group()
"""


def test_every_rank_learns_the_sums_and_the_longest_wait(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "meet")],
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert said == ["([3.0, 1.0], 30.0)"] * 2
