from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from mvl_dist.augment import intensity


class Fixed:
    """Stands for a generator: its uniform numbers are given, its coins fall on yes."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return value if size is None else np.broadcast_to(np.asarray(value, float), size)

    def random(self, size: int) -> np.ndarray:
        return np.zeros(size)


@pytest.fixture
def image() -> torch.Tensor:
    values = np.random.default_rng(0).gamma(2.0, size=(2, 15, 18, 21)) - 1
    return torch.from_numpy(scipy.ndimage.gaussian_filter(values, (0, 1, 1, 1)) * 3).float()


def test_blur_is_scipys_gaussian_filter(image: torch.Tensor) -> None:
    before = image.numpy().copy()
    sigmas = np.array([[0.5, 0.7, 1.0], [0.9, 0.6, 0.8]])
    intensity.gaussian_blur(image, Fixed(sigmas), None)  # type: ignore[arg-type]
    for channel in range(2):
        expected = scipy.ndimage.gaussian_filter(
            before[channel], sigmas[channel], mode="mirror", radius=3
        )
        np.testing.assert_allclose(image[channel].numpy(), expected, atol=2e-6)


def test_blur_takes_a_volume_thinner_than_its_kernel() -> None:
    values = torch.from_numpy(np.random.default_rng(0).random((3, 2, 9))).float()
    expected = scipy.ndimage.gaussian_filter1d(values.numpy(), 0.5, axis=2, mode="mirror", radius=3)
    blurred = intensity.blurred(values, np.array([1e-3, 1e-3, 0.5]))
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)
    assert torch.isfinite(intensity.blurred(values, np.array([1.0, 1.0, 1.0]))).all()


@pytest.mark.parametrize("power", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_monais_adjust_contrast(image: torch.Tensor, power: float, inverted: bool) -> None:
    from monai.transforms import AdjustContrast  # seconds to import

    adjust = AdjustContrast(gamma=power, invert_image=inverted, retain_stats=True)
    expected = torch.stack([torch.as_tensor(adjust(channel.clone())) for channel in image])
    change = intensity.inverted_gamma if inverted else intensity.gamma
    change(image, Fixed(power), None)  # type: ignore[arg-type]
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)


def test_contrast_stretches_about_the_mean_within_the_range(image: torch.Tensor) -> None:
    before = image.numpy().astype(np.float64)
    intensity.contrast(image, Fixed(1.25), None)  # type: ignore[arg-type]
    for channel, values in enumerate(before):
        expected = np.clip(
            (values - values.mean()) * 1.25 + values.mean(), values.min(), values.max()
        )
        np.testing.assert_allclose(image[channel].numpy(), expected, atol=1e-5)


def test_brightness_multiplies_each_channel_by_its_own_factor(image: torch.Tensor) -> None:
    before = image.clone()
    intensity.brightness(image, np.random.default_rng(3), None)
    ratios = (image / before).flatten(1)
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), rtol=1e-5, atol=0)
    assert ratios[0, 0] != ratios[1, 0]


def test_factors_lie_as_often_below_one_as_above() -> None:
    image = torch.zeros(4000, 1, 1, 1)
    factors = intensity._factors(image, np.random.default_rng(0), (0.7, 1.5)).flatten().numpy()
    below, above = factors[factors < 1], factors[factors >= 1]
    assert len(below) / 4000 == pytest.approx(0.5, abs=0.03)
    assert scipy.stats.kstest(below, "uniform", (0.7, 0.3)).pvalue > 1e-3
    assert scipy.stats.kstest(above, "uniform", (1.0, 0.5)).pvalue > 1e-3


@pytest.mark.parametrize("coarse", [None, 0])
def test_low_resolution_is_scipys_zoom_down_and_up(image: torch.Tensor, coarse: int | None) -> None:
    before = image.numpy().astype(np.float64)
    intensity.low_resolution(image, Fixed(0.6), coarse)  # type: ignore[arg-type]
    shape = np.array(before.shape[1:])
    fewer = np.array([15 if coarse == 0 else 9, 11, 13])
    options = {"mode": "nearest", "grid_mode": True}
    for channel, values in enumerate(before):
        small = scipy.ndimage.zoom(values, fewer / shape, order=0, **options)
        expected = scipy.ndimage.zoom(small, shape / fewer, order=1, **options)
        np.testing.assert_allclose(image[channel].numpy(), expected, atol=1e-5)


def test_noise_has_the_deviation_that_was_drawn_and_differs_between_channels() -> None:
    image = torch.zeros(2, 30, 31, 32)
    deviations = []
    for seed in range(20):
        image.zero_()
        intensity.gaussian_noise(image, np.random.default_rng(seed), None)
        drawn = np.random.default_rng(seed).uniform(0, 0.1)
        for channel in image:
            assert float(channel.std()) == pytest.approx(drawn, rel=0.05)
        assert abs(np.corrcoef(image[0].flatten(), image[1].flatten())[0, 1]) < 0.03
        deviations.append(drawn)
    assert max(deviations) <= 0.1


def test_a_constant_image_stays_finite() -> None:
    for change in (intensity.gamma, intensity.inverted_gamma, intensity.contrast):
        image = torch.full((1, 4, 4, 4), -2.5)
        change(image, np.random.default_rng(0), None)
        torch.testing.assert_close(image, torch.full_like(image, -2.5))
