from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvl_dist.label_resampling import resample_label, resample_labels
from mvl_dist.resample import image_resampler, linear_weights, resample_image

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("old", "new"), [(5, 5), (7, 16), (16, 7), (240, 128), (3, 1), (1, 4)])
def test_weights_of_an_axis_sum_to_one(old: int, new: int) -> None:
    np.testing.assert_allclose(linear_weights(old, new).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("new", [5, 11, 17, 40])
def test_each_axis_equals_torch_with_antialiasing(axis: int, new: int) -> None:
    volume = RNG.standard_normal((17, 17, 17)).astype(np.float32)
    shape = [17, 17, 17]
    shape[axis] = new
    # In float64: torch computes its weights in the precision of its input.
    slices = torch.from_numpy(np.moveaxis(volume, axis, 1).astype(np.float64))[:, None]
    oracle = F.interpolate(slices, (new, 17), mode="bilinear", antialias=True)[:, 0].numpy()
    ours = np.moveaxis(resample_image(volume, tuple(shape)), axis, 1)
    np.testing.assert_allclose(ours, oracle, atol=2e-6)


@pytest.mark.parametrize("shape", [(9, 45, 70), (9, 33, 70), (14, 45, 32), (5, 70, 64)])
def test_planes_of_any_size_are_rounded_and_turned_whole(shape: tuple[int, int, int]) -> None:
    volume = RNG.standard_normal((9, 33, 32)).astype(np.float32)
    out = np.full(shape, np.nan, np.float16)
    resampler = image_resampler(volume.shape, out)
    for plane in volume:
        resampler.push(plane)
    oracle = F.interpolate(torch.from_numpy(volume)[None, None], (9, *shape[1:]), mode="trilinear")
    tensor = oracle.to(torch.float64)[0].movedim(1, 2)
    oracle = F.interpolate(tensor, (shape[0], shape[2]), mode="bilinear", antialias=True)
    np.testing.assert_allclose(out, oracle[0].movedim(0, 1), atol=2e-3)


def test_growing_equals_torch_trilinear() -> None:
    volume = RNG.standard_normal((2, 9, 10, 11)).astype(np.float32)
    oracle = F.interpolate(torch.from_numpy(volume)[None], (20, 16, 11), mode="trilinear")[0]
    np.testing.assert_allclose(resample_image(volume, (20, 16, 11)), oracle, atol=2e-6)


@pytest.mark.parametrize("shape", [(3, 3, 3), (20, 8, 31)])
def test_a_constant_stays_constant(shape: tuple[int, int, int]) -> None:
    volume = np.full((2, 9, 10, 11), -1000, np.float32)
    np.testing.assert_allclose(resample_image(volume, shape), -1000, rtol=1e-6)


def test_the_same_shape_is_the_identity() -> None:
    volume = RNG.standard_normal((9, 10, 11)).astype(np.float32)
    label = RNG.integers(0, 4, (9, 10, 11)).astype(np.uint8)
    np.testing.assert_array_equal(resample_image(volume, (9, 10, 11)), volume)
    np.testing.assert_array_equal(resample_label(label, (9, 10, 11)), label)


def blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """Three nested balls and a stray voxel of the smallest label."""
    d, h, w = np.indices(shape)
    radius = np.sqrt(sum((x - n / 2) ** 2 for x, n in zip((d, h, w), shape, strict=True)))
    label = np.zeros(shape, np.uint8)
    for value, limit in ((1, 10), (2, 6), (3, 3)):
        label[radius < limit] = value
    label[1, 1, 1] = 3
    return label


@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 20, 33), (64, 64, 64), (128, 9, 30)])
def test_every_label_keeps_its_volume_to_the_voxel(shape: tuple[int, int, int]) -> None:
    label = blobs((30, 28, 32))
    out = resample_label(label, shape)
    for value in (1, 2, 3):
        wanted = (label == value).sum() * out.size / label.size
        assert abs((out == value).sum() - wanted) <= 1
    assert set(np.unique(out)) <= {0, 1, 2, 3}


def test_maps_of_several_shapes_made_at_once_are_each_as_a_map_alone_must_be() -> None:
    label = blobs((30, 28, 32))
    shapes = [(16, 16, 16), (30, 28, 32), (40, 20, 33)]
    maps = resample_labels(label, shapes)
    assert [out.shape for out in maps] == shapes
    np.testing.assert_array_equal(maps[1], label)
    for out in maps:
        for value in (1, 2, 3):
            wanted = (label == value).sum() * out.size / label.size
            assert abs((out == value).sum() - wanted) <= 1


@pytest.mark.parametrize("place", [(0, 0, 0), (15, 16, 17), (31, 31, 31), (13, 2, 30)])
def test_a_lesion_of_one_voxel_survives_shrinking_inside_its_organ(
    place: tuple[int, int, int],
) -> None:
    label = np.ones((32, 32, 32), np.uint8)
    label[place] = 2
    out = resample_label(label, (8, 8, 8))
    assert np.argwhere(out == 2).tolist() == [[x // 4 for x in place]]


def test_an_empty_label_stays_empty() -> None:
    assert not resample_label(np.zeros((5, 6, 7), np.uint8), (9, 9, 9)).any()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.msd
def test_real_labels_come_back_far_better_than_by_linear_then_positive(msd_root: Path) -> None:
    ours, published, growth = [], [], []
    files = sorted((msd_root / "Task04_Hippocampus" / "labelsTr").glob("[!.]*.nii.gz"))[:12]
    for path in files:
        label = np.asarray(nib.load(path).dataobj).astype(np.uint8)
        there = resample_label(label, (64, 64, 64))
        back = resample_label(there, label.shape)
        ours.append(dice(back > 0, label > 0))
        tensor = torch.from_numpy(label.astype(np.float32))[None, None]
        grown = F.interpolate(tensor, (64, 64, 64), mode="trilinear") > 0
        growth.append(float(grown.float().mean() / (tensor > 0).float().mean()))
        again = F.interpolate(grown.float(), label.shape, mode="trilinear")[0, 0] > 0
        published.append(dice(again.numpy(), label > 0))
        assert abs((there > 0).mean() / (label > 0).mean() - 1) < 1e-3
    assert np.mean(ours) > 0.98
    assert np.mean(published) < 0.85
    assert np.mean(growth) > 1.3
