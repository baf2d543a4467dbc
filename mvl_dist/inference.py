"""A whole volume through a model: at once where it was resampled to the model's grid, else by
MONAI's sliding window.

Windows are laid by MONAI's `sliding_window_inference`, weighted by a Gaussian (sigma an eighth of
the window) and summed in float32. The sums lie on the model's device while they stay below
`ON_DEVICE_BYTES`, in the main memory above: of a CT of 512 x 512 x 500 voxels they take 0.5 GiB for
each region and 0.5 GiB for the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mvl_dist.config import Shape3D
from mvl_dist.labelling import mean_probability
from mvl_dist.recipe import Recipe

ON_DEVICE_BYTES = 2**30
# A forward without gradients takes at least as many voxels as two samples of the paper's size.
VOXELS_AT_ONCE = 2 * 128**3
MOST_WINDOWS_AT_ONCE = 32


class Ensemble(torch.nn.Module):
    """Several sets of weights of one network, which holds its frozen donor only once."""

    def __init__(
        self, model: torch.nn.Module, members: Sequence[Mapping[str, Tensor]], activation: str
    ) -> None:
        super().__init__()
        self.model = model
        self.members = members
        self.activation = activation

    def each(self) -> Iterator[torch.nn.Module]:
        """The network with the weights of one member after another."""
        for weights in self.members:
            self.model.load_state_dict(weights, strict=False)
            yield self.model


def model_logits(model: torch.nn.Module, image: Tensor, recipe: Recipe) -> Tensor:
    """Logits of a volume by a model, or by the mean probability of an ensemble's members.

    Args:
        image: (C, D, H, W) of the recipe's resolution, any float dtype.

    Returns:
        (1, R, D, H, W) float32, R as the recipe's `out_channels`.
    """
    if isinstance(model, Ensemble):
        answers = [model_logits(member, image, recipe) for member in model.each()]
        return mean_probability(answers, model.activation)
    weight = next(model.parameters())
    return volume_logits(model, image, recipe, weight.device, weight.dtype)


def volume_logits(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """As `model_logits`, by any function from windows (B, C, D, H, W) to logits.

    Args:
        device, dtype: what `forward` takes.
    """
    data = recipe.config.data
    if data.resolution == "grid":
        return forward(image[None].to(device, dtype)).float()
    from monai.inferers import sliding_window_inference  # takes seconds to import

    # MONAI sums in the dtype of what it is given.
    logits: Tensor = sliding_window_inference(
        image[None].float(),
        data.grid,
        windows_at_once(data.grid),
        lambda windows: forward(windows.to(dtype)).float(),
        overlap=data.overlap,
        mode="gaussian",
        sw_device=device,
        device=sums_device(image.shape[1:], recipe.out_channels, device),
    )
    return logits


def sums_device(shape: Sequence[int], channels: int, device: torch.device) -> torch.device:
    """Where the windows of a volume (D, H, W) are summed: on the device while they are small."""
    size = 4 * (channels + 1) * math.prod(shape)
    return device if size <= ON_DEVICE_BYTES else torch.device("cpu")


def windows_at_once(window: Shape3D) -> int:
    """Windows of one forward."""
    return min(max(VOXELS_AT_ONCE // math.prod(window), 1), MOST_WINDOWS_AT_ONCE)


def forward_calls(shape: Sequence[int], recipe: Recipe) -> int:
    """How often `volume_logits` calls the model for a volume (D, H, W)."""
    data = recipe.config.data
    if data.resolution == "grid":
        return 1
    windows = 1
    for size, window in zip(shape, data.grid, strict=True):
        step = max(int(window * (1 - data.overlap)), 1)
        windows *= math.ceil(max(size - window, 0) / step) + 1
    return math.ceil(windows / windows_at_once(data.grid))
