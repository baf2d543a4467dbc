import numpy as np
import pytest

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
