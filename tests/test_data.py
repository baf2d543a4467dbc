from pathlib import Path

import numpy as np
import pytest
import torch

from mvl_dist.case_reader import CaseReader
from mvl_dist.data import CaseDataset, RankBatches, epoch_order, region_masks
from mvl_dist.loading import BatchLoader
from mvl_dist.store import read_array, read_manifest
from mvl_dist.tasks import Region


def global_batches(world_size: int, cases: int = 11, batch: int = 4) -> list[list[int]]:
    """Case indices of each global batch, put together from the ranks' slices."""
    ranks = []
    for rank in range(world_size):
        batches = RankBatches(cases, batch, rank, world_size, seed=3)
        batches.set_position(epoch=2)
        ranks.append(list(batches))
    return [[i for part in step for i, *_ in part] for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    assert global_batches(world_size) == global_batches(1)


def test_every_case_comes_in_every_epoch_and_orders_differ() -> None:
    orders = [epoch_order(11, 4, seed=0, epoch=epoch) for epoch in range(3)]
    assert all(set(order) == set(range(11)) and len(order) == 12 for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_fewer_cases_than_a_batch_still_fill_it() -> None:
    assert sorted(epoch_order(1, 4, seed=0, epoch=0)) == [0, 0, 0, 0]


def test_a_resumed_epoch_goes_on_with_the_batches_that_are_left() -> None:
    batches = RankBatches(11, 4, 0, 2, seed=0)
    batches.set_position(5)
    whole = list(batches)
    batches.set_position(5, first_batch=2)
    assert list(batches) == whole[2:]
    assert len(batches) == 1


def test_a_batch_holds_what_the_store_holds(phantom_store: Path) -> None:
    manifest = read_manifest(phantom_store, "91")
    cases = sorted(manifest.cases)
    reader = CaseReader(phantom_store, manifest.task.name)
    dataset = CaseDataset(reader, manifest, cases, "all")
    batch = next(iter(BatchLoader(dataset, RankBatches(8, 2, 0, 1, seed=0), workers=0)))
    assert batch["image"].shape == (2, 4, 16, 16, 16)
    target = region_masks(batch["label"], manifest.task.label_regions)
    assert target.shape == (2, 3, 16, 16, 16)
    for sample, case in enumerate(batch["case"]):
        label = read_array(phantom_store, manifest.task.name, case, "label")
        for region, (value, _) in enumerate(manifest.task.labels):
            np.testing.assert_array_equal(target[sample, region], label == value)
        image = read_array(phantom_store, manifest.task.name, case, "image")
        np.testing.assert_array_equal(batch["image"][sample], image)


def test_regions_may_share_labels() -> None:
    label = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    masks = region_masks(label, [Region("whole", (1, 2, 3)), Region("core", (3,))])
    assert masks.tolist() == [[[[0, 1, 1, 1]]], [[[0, 0, 0, 1]]]]
