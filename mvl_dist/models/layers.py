"""What of a network decides its memory, counted without building its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mvl_dist.memory import Layers
from mvl_dist.models import Shape3D
from mvl_dist.models.empty import build_empty
from mvl_dist.models.measure.memory import peak_activation_bytes

if TYPE_CHECKING:
    from mvl_dist.config import ModelConfig


def layers_of(config: ModelConfig, grid: Shape3D, in_channels: int = 1) -> Layers:
    """Count a network of one output channel, in bf16.

    Raises:
        UserError: the model cannot be built from these arguments.
    """
    model = build_empty(config, in_channels, 1, grid)
    parameters = list(model.parameters())
    largest = max(
        sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()
    )
    return Layers(
        trainable=tuple(p.numel() for p in parameters if p.requires_grad),
        frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
        largest_layer=largest,
        activation_bytes=peak_activation_bytes(model, in_channels, grid, torch.bfloat16),
    )
