import math
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
    values = np.random.default_rng(0).gamma(2.0, size=(3, 2, 15, 18, 21)) - 1
    return torch.from_numpy(scipy.ndimage.gaussian_filter(values, (0, 0, 1, 1, 1)) * 3).float()


def fixed(*a_sample: Any) -> Any:
    """A generator for each sample of a batch, from what it gives."""
    return [Fixed(value) for value in a_sample]


def channels(*volumes: Any) -> list[Any]:
    """The (D, H, W) of every sample and channel, beside each other in every batch."""
    return [parts for samples in zip(*volumes, strict=True) for parts in zip(*samples, strict=True)]


def test_blur_is_scipys_gaussian_filter(image: torch.Tensor) -> None:
    before = image.numpy().copy()
    sigmas = np.random.default_rng(1).uniform(0.5, 1.0, (3, 2, 3))
    intensity.gaussian_blur(image, fixed(*sigmas), None)
    for found, values, sigma in channels(image.numpy(), before, sigmas):
        expected = scipy.ndimage.gaussian_filter(values, sigma, mode="mirror", radius=3)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_blur_takes_a_volume_thinner_than_its_kernel() -> None:
    values = torch.from_numpy(np.random.default_rng(0).random((3, 2, 9))).float()
    expected = scipy.ndimage.gaussian_filter1d(values.numpy(), 0.5, axis=2, mode="mirror", radius=3)
    blurred = intensity.blurred(values[None], np.array([[1e-3, 1e-3, 0.5]]))
    np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-6)
    assert torch.isfinite(intensity.blurred(values[None], np.ones((1, 3)))).all()


@pytest.mark.parametrize("power", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_monais_adjust_contrast(image: torch.Tensor, power: float, inverted: bool) -> None:
    from monai.transforms import AdjustContrast  # seconds to import

    powers, before = (power, 1.2, 0.8), image.clone()
    change = intensity.inverted_gamma if inverted else intensity.gamma
    change(image, fixed(*powers), None)
    for found, sample, drawn in zip(image, before, powers, strict=True):
        adjust = AdjustContrast(gamma=drawn, invert_image=inverted, retain_stats=True)
        expected = torch.stack([torch.as_tensor(adjust(channel.clone())) for channel in sample])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_contrast_stretches_about_the_mean_within_the_range(image: torch.Tensor) -> None:
    before = image.numpy().astype(np.float64)
    factors = np.repeat([[1.25], [0.75], [1.1]], 2, axis=1)
    intensity.contrast(image, fixed(*factors), None)
    for found, values, factor in channels(image.numpy(), before, factors):
        expected = np.clip(
            (values - values.mean()) * factor + values.mean(), values.min(), values.max()
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_brightness_multiplies_each_channel_by_its_own_factor(image: torch.Tensor) -> None:
    before = image.clone()
    intensity.brightness(image, [np.random.default_rng(seed) for seed in range(3)], None)
    ratios = (image / before).flatten(2)
    torch.testing.assert_close(ratios, ratios[..., :1].expand_as(ratios), rtol=1e-5, atol=0)
    assert len(ratios[..., 0].unique()) == 6


def test_factors_lie_as_often_below_one_as_above() -> None:
    image = torch.zeros(1, 4000, 1, 1, 1)
    factors = intensity._factors(image, [np.random.default_rng(0)], (0.7, 1.5)).flatten().numpy()
    below, above = factors[factors < 1], factors[factors >= 1]
    assert len(below) / 4000 == pytest.approx(0.5, abs=0.03)
    assert scipy.stats.kstest(below, "uniform", (0.7, 0.3)).pvalue > 1e-3
    assert scipy.stats.kstest(above, "uniform", (1.0, 0.5)).pvalue > 1e-3


@pytest.mark.parametrize("coarse", [None, 0])
def test_low_resolution_is_scipys_zoom_down_and_up(image: torch.Tensor, coarse: int | None) -> None:
    before = image.numpy().astype(np.float64)
    intensity.low_resolution(image, fixed(0.6, 0.6, 0.8), coarse)
    shape = np.array(before.shape[2:])
    sizes = np.array([[9, 11, 13], [9, 11, 13], [12, 14, 17]])
    if coarse == 0:
        sizes[:, 0] = 15
    options = {"mode": "nearest", "grid_mode": True}
    for found, values, fewer in channels(image.numpy(), before, np.stack([sizes] * 2, 1)):
        small = scipy.ndimage.zoom(values, fewer / shape, order=0, **options)
        expected = scipy.ndimage.zoom(small, shape / fewer, order=1, **options)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_has_the_deviation_that_was_drawn_and_differs_between_channels() -> None:
    image = torch.zeros(20, 2, 30, 31, 32)
    intensity.gaussian_noise(image, [np.random.default_rng(seed) for seed in range(20)], None)
    drawn = [np.random.default_rng(seed).uniform(0, 0.1) for seed in range(20)]
    for sample, deviation in zip(image, drawn, strict=True):
        for channel in sample:
            assert float(channel.std()) == pytest.approx(deviation, rel=0.05)
        assert abs(np.corrcoef(sample.flatten(1))[0, 1]) < 0.03
    between = np.corrcoef(image[:, 0].flatten(1))[~np.eye(20, dtype=bool)]
    assert np.abs(between).max() < 0.03
    assert max(drawn) <= 0.1


def test_a_constant_image_stays_finite() -> None:
    for change in (intensity.gamma, intensity.inverted_gamma, intensity.contrast):
        image = torch.full((2, 1, 4, 4, 4), -2.5)
        change(image, [np.random.default_rng(0), np.random.default_rng(1)], None)
        torch.testing.assert_close(image, torch.full_like(image, -2.5))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (3, 5, 7), (1, 1, 1025), (16, 32, 64)])
def test_sums_are_exact_to_a_few_roundings(shape: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).normal(3, 1, (2, 3, *shape)).astype(np.float32)
    sums = intensity.halved_sums(torch.from_numpy(values)).numpy()
    assert sums.shape == (2, 3, 1, 1, 1)
    for found, channel in channels(sums, values):
        exact = math.fsum(channel.ravel().tolist())
        largest = math.fsum(np.abs(channel).ravel().tolist())
        assert abs(found.item() - exact) <= 2**-24 * (math.log2(channel.size) + 1) * largest


def test_sums_leave_the_values_alone() -> None:
    values = torch.randn(1, 1, 3, 3, 3)
    before = values.clone()
    intensity.halved_sums(values)
    assert torch.equal(values, before)
