import numpy as np
import pytest

from data_prep.intensity import ct_normalisation, hu_histogram
from mvl_dist.errors import UserError
from mvl_dist.intensity import normalise


def test_ct_numbers_from_histograms_equal_those_of_the_voxels() -> None:
    rng = np.random.default_rng(0)
    images = [np.rint(rng.normal(60 * n, 90, (1, 9, 10, 11))).astype(np.float32) for n in range(3)]
    images[0][0, 0, 0, 0] = -2048  # padding below any tissue
    images[1][0, 0, 0, 0] = 12000  # metal
    labels = [rng.integers(0, 2, (9, 10, 11)).astype(np.uint8) for _ in images]
    numbers = ct_normalisation("T", [hu_histogram(*c) for c in zip(images, labels, strict=True)])
    voxels = np.concatenate([i[0][k > 0] for i, k in zip(images, labels, strict=True)])
    voxels = voxels.astype(np.float64)
    np.testing.assert_allclose(numbers["clip_hu"], np.percentile(voxels, [0.5, 99.5]))
    np.testing.assert_allclose(
        [numbers["mean_hu"], numbers["std_hu"]], [voxels.mean(), voxels.std()]
    )
    out = normalise(images[1], numbers)
    clipped = np.clip(images[1], *numbers["clip_hu"])
    np.testing.assert_allclose(out, (clipped - voxels.mean()) / voxels.std(), atol=1e-5)


def test_hu_that_are_not_whole_are_rounded_for_the_count_only() -> None:
    image = np.full((1, 2, 2, 2), 10.4, np.float32)
    assert hu_histogram(image, np.ones((2, 2, 2), np.uint8)) == {10: 8}


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_every_labelled_voxel_counts_once_whichever_way_the_file_runs(
    dtype: str, step: int
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 40, (1, 6, 7, 8)).astype(dtype)[:, :, ::step, ::step]
    label = (rng.integers(0, 5, (6, 7, 8)) // 4).astype(np.uint8)[:, :, ::step]
    values, counts = np.unique(image[0][label > 0], return_counts=True)
    assert hu_histogram(image, label) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_without_labelled_voxels_there_is_no_ct_statistic() -> None:
    with pytest.raises(UserError, match="no training case has a labelled voxel"):
        ct_normalisation("T", [{}, {}])
