"""The registry of models: a name, the module that builds it, whether it needs a donor.

Every model module offers `build(spec) -> nn.Module`, and every model maps an image (B, C, D, H, W)
to logits (B, R, D, H, W). A new model is one file and one line below.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvl_dist.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from mvl_dist.config import ModelConfig
    from mvl_dist.models.donors import Donor


@dataclass(frozen=True)
class Entry:
    """Where a model is built, and whether it holds a frozen language-model block."""

    module: str
    needs_donor: bool = False


MODELS: dict[str, Entry] = {
    "vit_baseline": Entry("mvl_dist.models.vit"),
    "medvisionllama": Entry("mvl_dist.models.medvisionllama", needs_donor=True),
}


@dataclass(frozen=True)
class ModelSpec:
    """What a builder is given.

    Attributes:
        grid: D, H, W of the image in voxels; a multiple of `config.patch`.
        donor: the frozen block, for models that need one.
    """

    config: ModelConfig
    in_channels: int
    out_channels: int
    grid: tuple[int, int, int]
    donor: Donor | None = None


def check_model_name(name: str) -> None:
    """Refuse an unknown name; needs no torch.

    Raises:
        UserError: with the nearest names.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(MODELS)}"
        raise UserError(f"unknown model '{name}': {hint}")


def needs_donor(name: str) -> bool:
    """Whether a model holds a frozen language-model block."""
    return MODELS[name].needs_donor


def build_model(
    config: ModelConfig,
    in_channels: int,
    out_channels: int,
    grid: tuple[int, int, int],
    donor: Donor | None = None,
) -> nn.Module:
    """Build a model by its name; initial weights follow torch's global seed.

    Raises:
        UserError: unknown name, or a grid that the patches do not tile.
    """
    check_model_name(config.name)
    for axis, size, patch in zip("DHW", grid, config.patch, strict=True):
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            raise UserError(
                f"grid axis {axis} is {size}, not a multiple of the patch {patch}: "
                f"{below or above} or {above} fits"
            )
    builder = importlib.import_module(MODELS[config.name].module).build
    return builder(ModelSpec(config, in_channels, out_channels, grid, donor))
