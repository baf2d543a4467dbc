"""Changes of an image's values: one function each, on one sample, in place.

Every function takes `image`, (C, D, H, W) float32, which it changes; `generator`, this sample's and
this function's own; and `coarse`, the axis across whose planes nothing is resampled, or None. A
sample is handled by itself because the order in which a mean is summed may follow the batch.

Ranges and formulas are nnU-Net's (nnunetv2 2.8.1 with batchgeneratorsv2 0.3.6). Statistics stay on
the device, so that nothing waits for it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvl_dist.augment.noise import normal_field

NOISE_DEVIATION = (0.0, 0.1)
BLUR_SIGMA_VOXELS = (0.5, 1.0)
BLUR_RADIUS_VOXELS = 3
FACTOR = (0.75, 1.25)
GAMMA = (0.7, 1.5)
LOW_RESOLUTION = (0.5, 1.0)
CHANNEL_PROBABILITY = 0.5  # of blur and low resolution, which take each channel by itself


def gaussian_noise(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """Add noise of one deviation to all channels, up to a tenth of the normalised tissue's."""
    deviation = generator.uniform(*NOISE_DEVIATION)
    first, second = (int(word) for word in generator.integers(0, 2**32, 2))
    image += deviation * normal_field(image.shape, (first, second), image.device)


def gaussian_blur(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """Blur half of the channels, each axis with a sigma of its own; edges are reflected."""
    sigmas = generator.uniform(*BLUR_SIGMA_VOXELS, (image.shape[0], 3))
    for channel in _some_channels(image, generator):
        image[channel] = blurred(image[channel], sigmas[channel])


def brightness(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """Multiply every channel."""
    image *= _factors(image, generator, FACTOR)


def contrast(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """Stretch every channel about its mean, within its range."""
    factors = _factors(image, generator, FACTOR)
    for values, factor in zip(image, factors, strict=True):
        mean = values.mean()
        values.copy_(((values - mean) * factor + mean).clamp(values.min(), values.max()))


def low_resolution(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """Half of the channels as if scanned with fewer voxels: nearest down, linear up."""
    scales = generator.uniform(*LOW_RESOLUTION, image.shape[0])
    for channel in _some_channels(image, generator):
        values = image[channel][None, None]
        size = [
            length if axis == coarse else max(round(length * scales[channel]), 1)
            for axis, length in enumerate(image.shape[1:])
        ]
        fewer = F.interpolate(values, size, mode="nearest-exact")
        values.copy_(F.interpolate(fewer, image.shape[1:], mode="trilinear"))


def gamma(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """Raise every channel, brought to 0..1, to a power; mean and deviation are kept."""
    factors = _factors(image, generator, GAMMA)
    for values, power in zip(image, factors, strict=True):
        low = values.min()
        reach = values.max() - low
        curved = ((values - low) / reach.clamp(min=1e-7)) ** power * reach + low
        curved = (curved - curved.mean()) * (values.std() / curved.std().clamp(min=1e-7))
        values.copy_(curved + values.mean())


def inverted_gamma(image: Tensor, generator: np.random.Generator, coarse: int | None) -> None:
    """`gamma` on the negative, which curves the bright end instead of the dark one."""
    image.neg_()
    gamma(image, generator, coarse)
    image.neg_()


def blurred(values: Tensor, sigmas: np.ndarray) -> Tensor:
    """(D, H, W) blurred by a Gaussian a axis, `sigmas` in voxels, cut at three voxels."""
    # Shifted slices instead of a convolution, which cuDNN may run in TF32.
    for axis, sigma in enumerate(sigmas):
        length = values.shape[axis]
        radius = min(BLUR_RADIUS_VOXELS, length - 1)
        weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
        weights /= weights[0] + 2 * weights[1:].sum()
        pads = [0] * 6
        pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = radius
        padded = F.pad(values[None], pads, mode="reflect")[0]
        total = values * weights[0]
        for shift in range(1, radius + 1):
            before = padded.narrow(axis, radius - shift, length)
            after = padded.narrow(axis, radius + shift, length)
            total.add_((before + after).mul_(weights[shift]))
        values = total
    return values


def _some_channels(image: Tensor, generator: np.random.Generator) -> list[int]:
    chosen = generator.random(image.shape[0]) < CHANNEL_PROBABILITY
    return [int(channel) for channel in np.flatnonzero(chosen)]


def _factors(image: Tensor, generator: np.random.Generator, bounds: tuple[float, float]) -> Tensor:
    """A factor a channel, (C, 1, 1, 1): as often below 1 as above."""
    low, high = bounds
    size = image.shape[0]
    below, above = generator.uniform(low, 1, size), generator.uniform(1, high, size)
    factors = np.where(generator.random(size) < 0.5, below, above)
    return torch.from_numpy(factors.astype(np.float32)).to(image.device).view(-1, 1, 1, 1)
