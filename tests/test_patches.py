"""Training crops: where they lie, what they hold, and that they are the same at any world size."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvl_dist.case_reader import CaseReader
from mvl_dist.config import DataConfig
from mvl_dist.data import Item, RankBatches
from mvl_dist.loading import BatchLoader
from mvl_dist.node_cache import NodeCache
from mvl_dist.patches import (
    PatchDataset,
    crop_around_reference,
    crop_start,
    drawn_voxel,
    is_foreground,
)
from mvl_dist.store import Manifest, read_array, read_manifest

CROP = (16, 32, 32)


@pytest.fixture(scope="module")
def manifest(phantom_store: Path) -> Manifest:
    return read_manifest(phantom_store, "93")


def crops(store: Path, manifest: Manifest, **changes: object) -> PatchDataset:
    base = DataConfig(store=store, task="93", resolution="spaced", grid=CROP, channels="all")
    data = replace(base, target="labels", **changes)  # type: ignore[arg-type]
    reader = CaseReader(store, manifest.task.name)
    return PatchDataset(reader, manifest, sorted(manifest.cases), data, batch_size=4, seed=5)


@pytest.mark.parametrize(
    ("batch", "in_each", "of_all"),
    # nnU-Net's round(share * batch), and never less than the share: a batch of one has none of a
    # third of itself, so every third batch is foreground.
    [(1, (0, 1), 1 / 3), (2, (1, 1), 1 / 2), (3, (1, 1), 1 / 3), (4, (1, 2), 1 / 3)],
)
def test_the_last_crops_of_a_batch_have_foreground_and_never_fewer_than_their_share(
    batch: int, in_each: tuple[int, int], of_all: float
) -> None:
    epoch = [is_foreground(place, batch, 1 / 3) for place in range(batch * 30)]
    batches = [epoch[n : n + batch] for n in range(0, len(epoch), batch)]
    counts = [sum(one) for one in batches]
    assert (min(counts), max(counts)) == in_each
    assert np.mean(epoch) == pytest.approx(of_all)
    assert all(one == sorted(one) for one in batches)
    assert not any(is_foreground(place, batch, 0.0) for place in range(24))
    assert all(is_foreground(place, batch, 1.0) for place in range(24))


def test_a_class_is_drawn_evenly_however_few_voxels_it_has() -> None:
    places = np.arange(3030)
    foreground = np.stack([places, places, places, np.repeat([1, 2, 5], [3000, 20, 10])], 1)
    generator = np.random.default_rng(0)
    drawn = [drawn_voxel(foreground.astype(np.uint16), generator) for _ in range(3000)]
    label_of = dict(enumerate(foreground[:, 3]))
    counts = Counter(label_of[voxel[0]] for voxel in drawn if voxel)
    # Binomial(3000, 1/3): five deviations of 26 each.
    assert all(abs(counts[label] - 1000) < 130 for label in (1, 2, 5))
    rare = Counter(voxel for voxel in drawn if voxel and label_of[voxel[0]] == 5)
    assert len(rare) == 10
    assert min(rare.values()) > 50  # of about 100 each
    assert drawn_voxel(np.zeros((0, 4), np.uint16), generator) is None


def test_crops_lie_evenly_and_inside_the_scan_or_in_the_middle_of_a_smaller_one() -> None:
    generator = np.random.default_rng(0)
    shape, crop = (20, 16, 11), (16, 16, 16)
    starts = [crop_start(shape, crop, generator, None) for _ in range(2000)]
    first = Counter(d for d, _, _ in starts)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert all(abs(count - 400) < 90 for count in first.values())  # 5 deviations of 18
    # MONAI's sliding window pads 5 missing voxels by 2 before and 3 behind.
    assert {(h, w) for _, h, w in starts} == {(0, -2)}
    wide = (100, 100, 100)
    assert crop_start(wide, crop, generator, (50, 3, 99)) == (42, 0, 84)


def test_a_crop_holds_what_the_arrays_hold_and_zeros_beyond_them(
    phantom_store: Path, manifest: Manifest
) -> None:
    dataset = crops(phantom_store, manifest, grid=(64, 32, 32), foreground=1.0)
    item = dataset[Item(case=2, position=1, epoch=3)]
    case = item["case"]
    image = read_array(phantom_store, manifest.task.name, case, "image_spaced")
    label = read_array(phantom_store, manifest.task.name, case, "label_spaced")
    assert manifest.cases[case].spaced_shape == label.shape
    deep = label.shape[0]
    assert deep < 64  # so that there is something to pad
    before = (64 - deep) // 2
    inner = item["image"][:, before : before + deep].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (deep, 32, 32))[0]
    places = np.argwhere((windows == inner[0]).all((2, 3, 4)))
    assert len(places) == 1
    (h, w), size = places[0], 32
    expected = label[:, h : h + size, w : w + size]
    np.testing.assert_array_equal(item["label"][before : before + deep], expected)
    for outside in (item["image"][:, :before], item["image"][:, before + deep :]):
        assert not outside.any()
    assert item["image"].dtype == torch.float16
    assert item["label"].any()


def test_every_foreground_crop_holds_foreground(phantom_store: Path, manifest: Manifest) -> None:
    dataset = crops(phantom_store, manifest, grid=(8, 8, 8), foreground=1.0)
    held = [set(dataset[Item(n % 8, n, 0)]["label"].unique().tolist()) for n in range(48)]
    assert all(labels - {0} for labels in held)
    # Both classes are sought alike; the lesion is small, so crops around the organ rarely have it.
    lesions = sum(2 in labels for labels in held)
    assert 12 < lesions <= 48
    anywhere = crops(phantom_store, manifest, grid=(8, 8, 8), foreground=0.0)
    found = sum(bool(anywhere[Item(n % 8, n, 0)]["label"].any()) for n in range(48))
    assert found < 40


@pytest.mark.parametrize("world_size", [2, 4])
def test_crops_are_the_same_at_any_number_of_ranks_and_workers_and_after_a_resume(
    phantom_store: Path, manifest: Manifest, world_size: int
) -> None:
    dataset = crops(phantom_store, manifest, patches_per_case=2)

    def epoch(ranks: int, first: int = 0, workers: int = 0, number: int = 4) -> list[torch.Tensor]:
        parts = []
        for rank in range(ranks):
            batches = RankBatches(len(dataset), 4, rank, ranks, seed=5)
            batches.set_position(number, first)
            parts.append(
                [batch["image"].clone() for batch in BatchLoader(dataset, batches, workers)]
            )
        return [torch.cat(step) for step in zip(*parts, strict=True)]

    whole = epoch(1)
    assert len(whole) == 4  # 8 cases, two crops of each, by fours
    resumed = epoch(world_size, first=2, workers=1 if world_size == 2 else 0)
    for one, other in zip(resumed, whole[2:], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[0], epoch(1, number=5)[0])
    # A case that comes at one position in two epochs gives two crops.
    one, other = (dataset[Item(0, 0, number)]["image"] for number in (0, 1))
    assert not torch.equal(one, other)


def test_every_case_gives_as_many_crops_an_epoch_as_asked(
    phantom_store: Path, manifest: Manifest
) -> None:
    dataset = crops(phantom_store, manifest, patches_per_case=3)
    items = [item for batch in RankBatches(len(dataset), 4, 0, 1, seed=0) for item in batch]
    counts = Counter(dataset[item]["case"] for item in items)
    assert counts == dict.fromkeys(manifest.cases, 3)


def test_the_crop_that_is_shown_has_the_reference_in_its_middle(
    phantom_store: Path, manifest: Manifest
) -> None:
    dataset = crops(phantom_store, manifest)
    case = sorted(manifest.cases)[0]
    image, label = crop_around_reference(dataset.reader, manifest, case, dataset.data)
    assert image.shape[1:] == label.shape == CROP
    whole = read_array(phantom_store, manifest.task.name, case, "label_spaced")
    assert bool(label[8, 16, 16]) or label.count_nonzero() > 0.1 * np.count_nonzero(whole)


def test_crops_out_of_the_nodes_cache_are_those_of_the_store(
    phantom_store: Path, manifest: Manifest, tmp_path: Path
) -> None:
    dataset, cached = crops(phantom_store, manifest), crops(phantom_store, manifest)
    cached.reader = cached.reader.through(NodeCache(tmp_path, 10**9), manifest)
    for item in (Item(n % 8, n, epoch) for epoch in range(5) for n in range(8)):
        one, other = dataset[item], cached[item]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    assert len(list(tmp_path.glob("*.image_spaced.*.npy"))) == 8
    assert len(list(tmp_path.glob("*.label_spaced.*.npy"))) == 8
