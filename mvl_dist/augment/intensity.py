"""Changes of an image's values: one function each, on all samples that drew it at once, in place.

Every function takes `image`, (N, C, D, H, W) float32, which it changes; `generators`, one a sample,
this sample's and this function's own; and `coarse`, the axis across whose planes nothing is
resampled, or None. What becomes of a sample does not depend on those beside it, to the bit: means
are summed by `halved_sums`, as the order of torch's sums follows the batch's size.

Ranges and formulas are nnU-Net's (nnunetv2 2.8.1 with batchgeneratorsv2 0.3.6). Statistics stay on
the device, and what is drawn is sent without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mvl_dist.augment.batch import apart, sent
from mvl_dist.augment.noise import normal_fields

Generators = Sequence[np.random.Generator]

NOISE_DEVIATION = (0.0, 0.1)
BLUR_SIGMA_VOXELS = (0.5, 1.0)
BLUR_RADIUS_VOXELS = 3
FACTOR = (0.75, 1.25)
GAMMA = (0.7, 1.5)
LOW_RESOLUTION = (0.5, 1.0)
CHANNEL_PROBABILITY = 0.5  # of blur and low resolution, which take each channel by itself


def gaussian_noise(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """Add noise of one deviation to all channels, up to a tenth of the normalised tissue's."""
    deviations = [generator.uniform(*NOISE_DEVIATION) for generator in generators]
    keys = [generator.integers(0, 2**32, 2) for generator in generators]
    noise = normal_fields(image.shape[1:], np.stack(keys), image.device)
    image += noise.mul_(_beside(image, np.array(deviations)[:, None]))


def gaussian_blur(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """Blur half of the channels, each axis with a sigma of its own; edges are reflected."""
    channels = image.shape[1]
    sigmas = [generator.uniform(*BLUR_SIGMA_VOXELS, (channels, 3)) for generator in generators]
    chosen = np.flatnonzero(_some_channels(channels, generators))
    if not chosen.size:
        return
    volumes, where = image.view(-1, *image.shape[2:]), sent(chosen, image.device)
    taken = volumes.index_select(0, where)
    volumes.index_copy_(0, where, blurred(taken, np.concatenate(sigmas)[chosen]))


def brightness(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """Multiply every channel."""
    image *= _factors(image, generators, FACTOR)


def contrast(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """Stretch every channel about its mean, within its range."""
    factors = _factors(image, generators, FACTOR)
    low, high, mean = *_range(image), _mean(image)
    image.sub_(mean).mul_(factors).add_(mean).clamp_(low, high)


def low_resolution(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """Half of the channels as if scanned with fewer voxels: nearest down, linear up."""
    channels = image.shape[1]
    scales = [generator.uniform(*LOW_RESOLUTION, channels) for generator in generators]
    chosen = np.flatnonzero(_some_channels(channels, generators))
    if not chosen.size:
        return
    shape = np.array(image.shape[2:])
    fewer = np.maximum(np.round(np.concatenate(scales)[chosen, None] * shape), 1).astype(int)
    if coarse is not None:
        fewer[:, coarse] = shape[coarse]
    volumes, where = image.view(-1, *image.shape[2:]), sent(chosen, image.device)
    volumes.index_copy_(0, where, coarsened(volumes.index_select(0, where), fewer))


def gamma(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """Raise every channel, brought to 0..1, to a power; mean and deviation are kept."""
    powers = _factors(image, generators, GAMMA)
    mean = _mean(image)
    deviation = _deviation(image, mean)
    low, high = _range(image)
    reach = high - low
    image.sub_(low).div_(reach.clamp(min=1e-7))
    for part, power in zip(apart(image), apart(powers), strict=True):
        part.pow_(power)
    image.mul_(reach).add_(low)
    curved_mean = _mean(image)
    stretch = deviation / _deviation(image, curved_mean).clamp(min=1e-7)
    image.sub_(curved_mean).mul_(stretch).add_(mean)


def inverted_gamma(image: Tensor, generators: Generators, coarse: int | None) -> None:
    """`gamma` on the negative, which curves the bright end instead of the dark one."""
    image.neg_()
    gamma(image, generators, coarse)
    image.neg_()


def coarsened(volumes: Tensor, fewer: npt.NDArray[np.integer]) -> Tensor:
    """(M, D, H, W) at fewer voxels, nearest, and back, linearly; `fewer` (M, 3) of them an axis.

    Each volume has a size of its own. So that they are one call all the same, the smaller ones lie
    in the corner of arrays of the full size, in which no place beyond that corner is looked up.
    """
    fetched, places = [], []
    for axis, length in enumerate(volumes.shape[1:]):
        size, steps = fewer[:, axis, None], np.arange(length)
        nearest = np.floor((np.minimum(steps, size - 1) + 0.5) * length / size)
        linear = np.clip((steps + 0.5) * size / length - 0.5, 0, size - 1)
        view = [len(volumes), *(length if k == axis else 1 for k in range(3))]
        fetched.append(sent(nearest.astype(np.int64).reshape(view), volumes.device))
        place = ((2 * linear + 1) / length - 1).astype(np.float32).reshape(view)
        places.append(sent(place, volumes.device).expand_as(volumes))
    row = torch.arange(len(volumes), device=volumes.device).view(-1, 1, 1, 1)
    small = volumes[row, fetched[0], fetched[1], fetched[2]]
    grid = torch.stack(places[::-1], dim=-1)
    # Edges go on, or rounding could take a last voxel's place for one outside.
    back = F.grid_sample(small[:, None], grid, padding_mode="border", align_corners=False)
    return back[:, 0]


def blurred(volumes: Tensor, sigmas: npt.NDArray[np.floating]) -> Tensor:
    """(M, D, H, W) blurred by Gaussians cut at three voxels; `sigmas` (M, 3) in voxels."""
    radii = [min(BLUR_RADIUS_VOXELS, length - 1) for length in volumes.shape[1:]]
    by_axis = [_weights(sigmas[:, axis], radius) for axis, radius in enumerate(radii)]
    weights = _beside(volumes, np.stack(by_axis))
    # Shifted slices instead of a convolution, which cuDNN may run in TF32.
    for axis, radius in enumerate(radii):
        length = volumes.shape[1 + axis]
        pads = [0] * 6
        pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = radius
        padded = F.pad(volumes, pads, mode="reflect")
        total = volumes * weights[axis, 0]
        for shift in range(1, radius + 1):
            before = padded.narrow(1 + axis, radius - shift, length)
            after = padded.narrow(1 + axis, radius + shift, length)
            total.add_((before + after).mul_(weights[axis, shift]))
        volumes = total
    return volumes


def _weights(sigma: npt.NDArray[np.floating], radius: int) -> npt.NDArray[np.floating]:
    """Of the middle voxel and of those beside it, (4, M); 0 beyond the radius."""
    steps = np.arange(BLUR_RADIUS_VOXELS + 1)[:, None]
    weights = np.where(steps <= radius, np.exp(-0.5 * (steps / sigma) ** 2), 0.0)
    return weights / (weights[0] + 2 * weights[1:].sum(axis=0))


def halved_sums(values: Tensor) -> Tensor:
    """Sums of (N, C, D, H, W) float32 over the last three axes, (N, C, 1, 1, 1).

    The second half is added to the first until one number is left: one order, whatever the batch
    and the device, and an error that grows with the logarithm of the size.
    """
    flat = values.flatten(2)
    size = flat.shape[2]
    half = (size + 1) // 2
    sums = flat[..., :half].clone()
    sums[..., : size - half] += flat[..., half:]
    while half > 1:
        size, half = half, (half + 1) // 2
        sums[..., : size - half] += sums[..., half:size]
    return sums[..., :1, None, None]


def _mean(image: Tensor) -> Tensor:
    return halved_sums(image) / image[0, 0].numel()


def _deviation(image: Tensor, mean: Tensor) -> Tensor:
    squares = (image - mean).square_()
    return (halved_sums(squares) / max(image[0, 0].numel() - 1, 1)).sqrt_()


def _range(image: Tensor) -> tuple[Tensor, Tensor]:
    return image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)


def _some_channels(channels: int, generators: Generators) -> npt.NDArray[np.bool_]:
    """Which channels are taken, (N, C)."""
    drawn = [generator.random(channels) for generator in generators]
    return np.stack(drawn) < CHANNEL_PROBABILITY


def _factors(image: Tensor, generators: Generators, bounds: tuple[float, float]) -> Tensor:
    """A factor a sample and channel, (N, C, 1, 1, 1): as often below 1 as above."""
    low, high = bounds
    size = image.shape[1]
    factors = []
    for generator in generators:
        below, above = generator.uniform(low, 1, size), generator.uniform(1, high, size)
        factors.append(np.where(generator.random(size) < 0.5, below, above))
    return _beside(image, np.stack(factors))


def _beside(volumes: Tensor, numbers: npt.NDArray[np.floating]) -> Tensor:
    """Numbers of volumes (..., D, H, W), as float32 where these are, (..., 1, 1, 1)."""
    return sent(numbers.astype(np.float32)[..., None, None, None], volumes.device)
