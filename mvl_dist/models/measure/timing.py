"""Time of a sample's forward on this machine."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from mvl_dist.models import Shape3D
from mvl_dist.models.measure.step import mode
from mvl_dist.models.weightless import fill_weights

# A forward longer than this is timed once: its noise is small beside it.
LONG_SECONDS = 5.0
REPEATS_CPU, REPEATS_CUDA, WARM_UPS_CUDA = 3, 20, 5


def milliseconds_per_sample(
    model: nn.Module, in_channels: int, grid: Shape3D, device: torch.device, dtype: torch.dtype
) -> float:
    """Median time of one sample's forward in eval mode, without gradients.

    On a GPU after warm-up, each run synchronised; on a CPU a first run that takes more than 5 s is
    taken as it is.

    Args:
        model: is moved to `device` and `dtype`, and its meta tensors are drawn at random.
        in_channels: of the image.
        grid: D, H, W in voxels.
        device: where it runs.
        dtype: of weights and image.
    """
    fill_weights(model, device, dtype)
    image = torch.randn(1, in_channels, *grid, device=device, dtype=dtype)
    cuda = device.type == "cuda"

    def seconds() -> float:
        started = time.perf_counter()
        model(image)
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with mode(model, False):
        first = [seconds() for _ in range(WARM_UPS_CUDA if cuda else 1)][-1]
        if not cuda and first > LONG_SECONDS:
            return 1000 * first
        repeats = REPEATS_CUDA if cuda else REPEATS_CPU
        return 1000 * statistics.median(seconds() for _ in range(repeats))
