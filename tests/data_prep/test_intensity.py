import numpy as np
import pytest

from data_prep.intensity import ct_normalisation, hu_histogram
from mvl_dist.errors import UserError
from mvl_dist.intensity import MRI_SCHEME, normalise


def test_mri_has_mean_zero_and_deviation_one_over_nonzero_voxels_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(500, 80, (2, 8, 9, 10)).astype(np.float32)
    image[1] *= 40
    image[:, :3] = 0
    out = normalise(image, MRI_SCHEME)
    for channel in range(2):
        inside = out[channel][image[channel] != 0]
        assert abs(inside.mean()) < 1e-4
        assert abs(inside.std() - 1) < 1e-4
    assert image[0, 0, 0, 0] == 0  # the input is left alone


@pytest.mark.parametrize("value", [0.0, 700.0, -3.0, 1e-12])
def test_a_constant_channel_stays_within_float16(value: float) -> None:
    image = np.full((1, 4, 4, 4), value, np.float32)
    image[0, 0] = 0
    assert np.isfinite(normalise(image, MRI_SCHEME).astype(np.float16)).all()


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


def test_without_labelled_voxels_there_is_no_ct_statistic() -> None:
    with pytest.raises(UserError, match="no training case has a labelled voxel"):
        ct_normalisation("T", [{}, {}])
