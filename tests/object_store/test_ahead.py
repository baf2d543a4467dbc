"""What is asked for before it is needed, and that nothing is asked for twice."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvl_dist import cache_folder, case_reader, store
from mvl_dist.case_reader import CaseReader
from mvl_dist.config import DataConfig, smoke
from mvl_dist.data import CaseDataset, Item, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.evaluation import evaluate_cases
from mvl_dist.loading import BatchLoader
from mvl_dist.node_cache import NodeCache
from mvl_dist.patches import PatchDataset
from mvl_dist.place import StorePlace, store_place
from mvl_dist.plan import make_plan
from mvl_dist.store import far_array, objects
from tests.object_server import ObjectServer, object_server
from tests.object_store.places import CASES, TASK, in_environment, key, loader


def test_a_crop_asks_for_the_index_of_its_shard_once_and_for_its_chunks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    small = np.zeros((4, 4, 4), np.uint8)
    # Four channels that do not compress: chunks of 2 MB, which are not read as neighbours.
    spaced = store.SpacedArrays(
        rng.integers(0, 2**15, (4, 130, 130, 64)).astype(np.uint16).view(np.float16),
        rng.integers(0, 3, (130, 130, 64)).astype(np.uint8),
        np.ones((5, 4), np.uint16),
    )
    arrays = store.CaseArrays(small[None].astype(np.float16), small, small, spaced)
    store.create_task_group(tmp_path / "s", "T")
    store.write_case(tmp_path / "s", "T", "c", arrays, {})
    apart = (slice(60, 70), slice(125, 130), slice(0, 64))  # chunks (0, 1), (0, 2), (1, 1), (1, 2)
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(tmp_path / "s", "shard-bucket")
            place = store_place("s3://shard-bucket")
            for first in (True, False):
                slow.taken()
                part = store.read_box(place, "T", "c", "image_spaced", apart)
                np.testing.assert_array_equal(
                    part.view(np.uint16), spaced.image_spaced[(..., *apart)].view(np.uint16)
                )
                seen, most_at_once = slow.taken()
                assert len(seen) == 2 * first + 2  # two pairs of neighbours
                assert most_at_once == 2
            for name, values in arrays.named().items():
                there = store.read_array(place, "T", "c", name)
                np.testing.assert_array_equal(there, values)
            slow.delete("shard-bucket", "T/cases/c/label_spaced/c.0.0.0")
            with pytest.raises(UserError, match="label_spaced"):
                store.read_box(place, "T", "c", "label_spaced", (slice(0, 9),) * 3)


def test_a_case_costs_two_requests_and_what_its_arrays_are_is_asked_once(
    bucket: StorePlace, reachable: ObjectServer
) -> None:
    batches, order = loader(bucket, 0)
    manifest, _ = reachable.taken()
    assert manifest == [f"GET /{'/'.join(key(bucket, TASK + '/manifest.json'))}"]
    for epoch, documents in ((0, 2), (1, 0)):
        order.set_position(epoch)
        cases = Counter(case for batch in batches for case in batch["case"])
        assert sum(cases.values()) == len(cases) == CASES
        seen, _ = reachable.taken()
        assert all(path.startswith("GET ") for path in seen)
        chunks = [path for path in seen if not path.endswith("/zarr.json")]
        assert len(seen) - len(chunks) == documents
        asked = Counter(next(case for case in cases if f"/{case}/" in path) for path in chunks)
        assert set(asked.values()) == {2}


def test_what_the_nodes_cache_holds_is_not_asked_for_again(
    bucket: StorePlace, reachable: ObjectServer, tmp_path: Path
) -> None:
    manifest = store.read_manifest(bucket, TASK)
    cache_folder.join(tmp_path / "cache")
    try:
        reader = CaseReader(bucket, TASK).through(NodeCache(tmp_path / "cache", 10**9), manifest)
        dataset = CaseDataset(reader, manifest, sorted(manifest.cases), "all")
        order = RankBatches(CASES, 2, 0, 1, seed=0)
        batches = BatchLoader(dataset, order, 0)
        for epoch, requests in ((0, 1 + 2 + 2 * CASES), (1, 0)):
            order.set_position(epoch)
            assert sum(1 for _ in batches) == CASES // 2
            assert len(reachable.taken()[0]) == requests
    finally:
        cache_folder.leave(tmp_path / "cache")


@pytest.mark.parametrize(("may", "are"), [(5, 5), (32, 2 * CASES + 2)])
def test_the_files_of_all_cases_in_sight_are_asked_for_at_once_and_once(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch, may: int, are: int
) -> None:
    """Batches are of two: the files of this one and the next three; none is let go of unread."""
    monkeypatch.setattr(objects, "AT_ONCE", may)
    monkeypatch.setattr(objects, "AHEAD", objects._Ahead())
    monkeypatch.setattr(objects, "KEPT", 0)
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(phantom_store / TASK, "slow-bucket", f"{TASK}/", at_once=16)
            batches, _ = loader(store_place("s3://slow-bucket"), 0)
            far_array.forget()
            slow.taken()
            assert sum(1 for _ in batches) == CASES // 2
            seen, most_at_once = slow.taken()
    assert len(seen) == 2 * CASES + 2
    assert most_at_once == are


def test_cases_gone_through_one_by_one_come_several_at_once(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As validation does: image and label one after another would be 16 round trips."""
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(phantom_store / TASK, "turn-bucket", f"{TASK}/", at_once=16)
            near, far = (
                CaseDataset(CaseReader(place, TASK), manifest, sorted(manifest.cases), "all")
                for place in (phantom_store, store_place("s3://turn-bucket"))
                for manifest in [store.read_manifest(phantom_store, TASK)]
            )
            slow.taken()
            order = [5, 0, 7, 2, 1, 3, 6, 4]
            for there, here in zip(near.in_turn(order), far.in_turn(order), strict=True):
                assert here["case"] == there["case"]
                torch.testing.assert_close(here["image"], there["image"], rtol=0, atol=0)
            seen, most_at_once = slow.taken()
    assert len(seen) == 2 * CASES + 2
    assert most_at_once == 2 * 4 + 2  # four cases of two files, and what these are


class Bright(torch.nn.Module):
    """Marks what is bright."""

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.regions = regions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1].expand(-1, self.regions, -1, -1, -1) - 0.5


def test_an_evaluation_is_sent_the_next_cases_while_it_scores_one(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smoke()
    model = replace(config.model, name="vit_baseline")
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(phantom_store / TASK, "score-bucket", f"{TASK}/", at_once=16)
            near, far = (
                make_plan(
                    replace(
                        config,
                        model=model,
                        data=replace(config.data, store=place, task=TASK, grid=(16, 16, 16)),
                    )
                )
                for place in (phantom_store, store_place("s3://score-bucket"))
            )
            cases = sorted(near.manifest.cases)
            slow.taken()
            there, here = (
                evaluate_cases(Bright(len(plan.regions)), plan, cases) for plan in (near, far)
            )
            seen, most_at_once = slow.taken()
    assert repr(here) == repr(there)  # some are not a number
    # Image, label, the label as acquired and what this is; once, what image and label are.
    assert len(seen) == 4 * CASES + 2
    assert most_at_once == 4 * 4 + 2


@pytest.mark.parametrize(("at_a_time", "shards"), [(10**9, 2 * CASES), (1, 1), (0, 0)])
def test_scans_that_crops_are_cut_of_come_before_they_are_needed(
    bucket: StorePlace,
    reachable: ObjectServer,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_a_time: int,
    shards: int,
) -> None:
    """Into the cache they go whole, image and label; without one (0) only parts are asked for."""
    monkeypatch.setattr(case_reader, "BYTES_AHEAD", at_a_time)
    manifest = store.read_manifest(bucket, TASK)
    data = DataConfig(grid=(8, 8, 8), resolution="spaced", foreground=1.0)
    near, far = (
        PatchDataset(
            CaseReader(place, TASK).through(cache, manifest), manifest, cases, data, 2, seed=0
        )
        for place, cache in (
            (phantom_store, None),
            (bucket, NodeCache(tmp_path / "cache", 10**9) if at_a_time else None),
        )
        for cases in [sorted(manifest.cases)]
    )
    cache_folder.join(tmp_path / "cache")
    try:
        items = [Item(index, index) for index in range(CASES)]
        reachable.taken()
        far.ahead(items)
        time.sleep(1)
        seen, _ = reachable.taken()
        whole = [path for path in seen if "_spaced/c.0.0.0" in path and "foreground" not in path]
        assert len(whole) == shards
        for item in items:
            here, there = far[item], near[item]
            torch.testing.assert_close(here["image"], there["image"], rtol=0, atol=0)
            torch.testing.assert_close(here["label"], there["label"], rtol=0, atol=0)
        reachable.taken()
        far.ahead(items)
        far[items[3]]
        assert bool(reachable.taken()[0]) == (at_a_time == 0)  # the cache has it all
    finally:
        cache_folder.leave(tmp_path / "cache")
