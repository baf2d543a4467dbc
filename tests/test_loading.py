"""Batches by worker processes: the same, and what is said when one fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from mvl_dist.case_reader import CaseReader
from mvl_dist.data import Batch, CaseDataset, Item, Layout, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.loading import BatchLoader, timed
from mvl_dist.node_cache import NodeCache
from mvl_dist.store import read_manifest

REPO = Path(__file__).resolve().parent.parent


def test_workers_and_the_cache_give_the_same_batches(phantom_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(phantom_store, "93")
    reader = CaseReader(phantom_store, manifest.task.name)
    cache = NodeCache(tmp_path, 10**9)
    plain, cached = (
        CaseDataset(reader_, manifest, sorted(manifest.cases), "first")
        for reader_ in (reader, reader.through(cache, manifest))
    )
    orders = [RankBatches(8, 2, 0, 1, seed=0) for _ in range(3)]
    loaders = [
        BatchLoader(dataset, order, workers)
        for dataset, order, workers in zip((plain, cached, cached), orders, (0, 0, 2), strict=True)
    ]
    for epoch, first_batch in ((0, 0), (1, 0), (1, 2)):  # the last as after a resume
        for order in orders:
            order.set_position(epoch, first_batch)
        steps = 0
        for one, *others in zip(*loaders, strict=True):
            steps += 1
            for other in others:
                assert other["case"] == one["case"]
                assert other["position"] == one["position"]
                assert torch.equal(other["image"], one["image"])
                assert torch.equal(other["label"], one["label"])
        assert steps == 4 - first_batch
    assert len(list(tmp_path.glob("*.image.*.npy"))) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_one_line_whoever_reads_it(
    phantom_store: Path, tmp_path: Path, workers: int
) -> None:
    store = Path(shutil.copytree(phantom_store, tmp_path / "store"))
    manifest = read_manifest(store, "93")
    cases = sorted(manifest.cases)
    chunk = store / manifest.task.name / "cases" / cases[2] / "label" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    dataset = CaseDataset(CaseReader(store, manifest.task.name), manifest, cases, "first")
    with pytest.raises(UserError) as caught:
        list(BatchLoader(dataset, RankBatches(len(cases), 2, 0, 1, seed=0), workers))
    assert len(str(caught.value).splitlines()) == 1
    assert f"--leave-out {cases[2]}" in str(caught.value)


class Killed:
    """A machine that is out of memory."""

    layout: ClassVar[Layout] = {}

    def __getitem__(self, item: Item) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_a_killed_worker_is_one_line_that_says_what_to_lower() -> None:
    with pytest.raises(UserError, match=r"lower --workers \(now 1\)") as caught:
        list(BatchLoader(Killed(), RankBatches(4, 2, 0, 1, seed=0), workers=1))
    assert len(str(caught.value).splitlines()) == 1


class Numbered:
    """Samples whose every value is their position."""

    layout: ClassVar[Layout] = {"image": ((3, 5), torch.float32), "label": ((5,), torch.uint8)}

    def __getitem__(self, item: Item) -> Batch:
        return {
            "image": torch.full((3, 5), float(item.position)),
            "label": torch.full((5,), item.position, dtype=torch.uint8),
            "case": f"case {item.position}",
        }


class Foretold(Numbered):
    """A sample's label is how many of its own and later samples this process was told of."""

    def __init__(self) -> None:
        self.told: set[int] = set()

    def ahead(self, items: Sequence[Item]) -> None:
        self.told |= {item.position for item in items}

    def __getitem__(self, item: Item) -> Batch:
        sample = super().__getitem__(item)
        sample["label"].fill_(sum(position >= item.position for position in self.told))
        sample["told"] = item.position in self.told
        return sample


@pytest.mark.parametrize(("workers", "batch"), [(0, 1), (1, 1), (2, 1), (2, 5), (1, 20)])
def test_a_worker_knows_of_sixteen_samples_and_of_a_batch_more(workers: int, batch: int) -> None:
    """However small the batches are, what lies far away is under way before it is needed."""
    batches = list(range(0, 100, batch))
    told, first = [], []
    for filled in BatchLoader(
        Foretold(), RankBatches(len(batches) * batch, batch, 0, 1, seed=0), workers
    ):
        told += filled["told"]
        first.append(int(filled["label"][0, 0]))
    assert told == [True] * batch * len(batches)
    each = max(workers, 1)
    for number, known in enumerate(first):
        left = len(range(number, len(batches), each)) * batch  # of this worker's own
        assert known == min(left, max(2 * batch, -(-16 // batch) * batch))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_stays_as_it_is_while_a_step_uses_it(workers: int) -> None:
    loader = BatchLoader(Numbered(), RankBatches(60, 2, 0, 1, seed=0), workers)
    for number, batch in enumerate(loader):
        time.sleep(0.01)  # workers go on as far as they may
        wanted = torch.tensor([2 * number, 2 * number + 1])
        assert torch.equal(batch["image"], wanted.float()[:, None, None].expand(2, 3, 5))
        assert torch.equal(batch["label"], wanted.to(torch.uint8)[:, None].expand(2, 5))
        assert batch["case"] == [f"case {position}" for position in wanted.tolist()]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_is_kept_too_long_is_an_error_and_never_overwritten(workers: int) -> None:
    loader = BatchLoader(Numbered(), RankBatches(12, 2, 0, 1, seed=0), workers)
    kept: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match="clone its tensors"):
        kept.extend(batch["label"][0] for batch in loader)  # a view is enough
    assert [int(label[0]) for label in kept] == [0, 2]


def test_a_sample_of_another_shape_is_refused_and_not_stretched() -> None:
    class Broken(Numbered):
        layout: ClassVar[Layout] = {"image": ((4, 3, 5), torch.float32)}

    with pytest.raises(ValueError, match=r"image of a sample is \(3, 5\)"):
        next(iter(BatchLoader(Broken(), RankBatches(4, 2, 0, 1, seed=0), workers=0)))


def test_batches_for_which_there_is_no_memory_are_one_line() -> None:
    class Huge(Numbered):
        layout: ClassVar[Layout] = {"image": ((2**42,), torch.float32)}

    with pytest.raises(UserError, match="lower --workers or --batch-size"):
        BatchLoader(Huge(), RankBatches(4, 2, 0, 1, seed=0), workers=0)


def run_alone(program: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a session of its own, until its last process is gone.

    All of them hold its output open, so that one left behind runs into the limit of time.
    """
    script = tmp_path / "program.py"
    script.write_text(program)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )


GROUP = """
import os, signal, sys, threading
from pathlib import Path
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import CaseDataset, RankBatches
from mvl_dist.loading import BatchLoader
from mvl_dist.store import read_manifest

def main():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # as a rank, which saves
    store = Path(sys.argv[1])
    manifest = read_manifest(store, "93")
    dataset = CaseDataset(
        CaseReader(store, manifest.task.name), manifest, sorted(manifest.cases), "first"
    )
    batches = iter(BatchLoader(dataset, RankBatches(8, 1, 0, 1, seed=0), workers=1))
    # While the worker process still starts.
    threading.Timer(0.5, os.killpg, (0, signal.SIGUSR1)).start()
    seen = [next(batches)["case"][0]]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.killpg(0, number)
        seen.append(next(batches)["case"][0])
    print(len(seen + [batch["case"][0] for batch in batches]))

if __name__ == "__main__":
    main()
"""


def test_a_signal_to_a_ranks_whole_group_ends_no_worker(
    phantom_store: Path, tmp_path: Path
) -> None:
    """Slurm and torch's launcher signal all processes of a rank, which then saves and goes on."""
    done = run_alone(GROUP, tmp_path, str(phantom_store))
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr


HELD = """
import sys
from mvl_dist.data import RankBatches
from mvl_dist.loading import BatchLoader
from tests.test_loading import Numbered

if __name__ == "__main__":
    held = BatchLoader(Numbered(), RankBatches(8, 2, 0, 1, seed=0), workers=2)
    batches = iter(held)
    next(batches)
    sys.exit(3)
"""


def test_a_process_that_ends_amid_an_epoch_does_not_wait_for_its_workers(tmp_path: Path) -> None:
    done = run_alone(HELD, tmp_path)
    assert (done.returncode, done.stderr) == (3, "")


ORPHANED = """
import os, signal, sys, threading
from mvl_dist.data import RankBatches
from mvl_dist.loading import BatchLoader
from tests.test_loading import Numbered

if __name__ == "__main__":
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    next(iter(BatchLoader(Numbered(), RankBatches(8, 2, 0, 1, seed=0), workers=1)))
"""


def test_a_process_that_is_killed_while_its_workers_start_leaves_none_behind(
    tmp_path: Path,
) -> None:
    done = run_alone(ORPHANED, tmp_path)
    assert done.returncode == -signal.SIGKILL


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
