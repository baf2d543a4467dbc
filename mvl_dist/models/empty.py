"""Models without weights: for counting what they cost, on any machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mvl_dist.models import MODELS, Shape3D, build_model
from mvl_dist.models.donors import Donor, absolute_layers, open_source
from mvl_dist.models.donors.families import family_of
from mvl_dist.models.donors.sources import KNOWN_SHAPES
from mvl_dist.models.weightless import WithoutWeights

if TYPE_CHECKING:
    from torch import nn

    from mvl_dist.config import DonorConfig, ModelConfig


def build_empty(
    config: ModelConfig, in_channels: int, out_channels: int, grid: Shape3D
) -> nn.Module:
    """A model with its weights on the meta device, its donor's too.

    Its block is in the model's precision: one in eight bits has the same parameters and FLOP, and
    shapes alone have no FP8 product.

    Raises:
        UserError: the model cannot be built from these arguments.
    """
    config = replace(config, frozen_precision="model")
    donor = empty_donor(config.donor) if MODELS[config.name].needs_donor else None
    with WithoutWeights():
        return build_model(config, in_channels, out_channels, grid, donor)


def empty_donor(config: DonorConfig) -> Donor:
    """A donor's layers and final norm without weights; a known name needs no file."""
    shape = config.source.removeprefix("random:")
    settings = KNOWN_SHAPES.get(shape) or open_source(config.source).config
    layers = absolute_layers(config.source, config.layers, settings["num_hidden_layers"])
    block = family_of(settings["model_type"]).empty_block(settings, len(layers))
    return Donor(
        block=block.requires_grad_(False),
        hidden_size=settings["hidden_size"],
        source=config.source,
        layers=layers,
        model_type=settings["model_type"],
        checksum="",
    )
