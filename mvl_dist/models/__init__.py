"""The registry of models: a name, the module that builds it, what of a config it reads.

Every model module offers `build(spec) -> nn.Module`, and every model maps an image (B, C, D, H, W)
to logits (B, R, D, H, W); in training mode it may return a tuple of such logits, the finest first,
for deep supervision. A new model is one file and one line below.
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

Shape3D = tuple[int, int, int]


@dataclass(frozen=True)
class Entry:
    """Where a model is built, and what of a config it needs.

    Attributes:
        module: offers `build(spec)`.
        reads: fields of ModelConfig that decide the network; the others are no part of its runs.
        multiple: every axis of the grid must be a multiple of this; 0: of the patch.
        more_than_one: at least one axis must be a larger multiple, because the deepest stage
            normalises over its voxels, and one voxel has no variance.
    """

    module: str
    reads: tuple[str, ...] = ("features",)
    multiple: int = 0
    more_than_one: bool = False

    @property
    def needs_donor(self) -> bool:
        """Whether the model holds a language-model block."""
        return "donor" in self.reads


VIT = ("patch", "width", "depth", "heads", "mlp_ratio", "dropout")
LANGUAGE_MODEL = (*VIT, "llm_position", "train_block", "frozen_precision", "donor")

MODELS: dict[str, Entry] = {
    "vit_baseline": Entry("mvl_dist.models.vit", VIT),
    "vit_depth": Entry("mvl_dist.models.vit_depth", VIT),
    "vit_mlp": Entry("mvl_dist.models.vit_mlp", (*VIT, "llm_position")),
    "medvisionllama": Entry("mvl_dist.models.medvisionllama", (*LANGUAGE_MODEL, "lora")),
    "medvisionllama_linear": Entry("mvl_dist.models.medvisionllama_linear", LANGUAGE_MODEL),
    "unetpp": Entry("mvl_dist.models.unetpp", multiple=16, more_than_one=True),
    "unetr": Entry("mvl_dist.models.unetr", multiple=16),
    "nnunet": Entry("mvl_dist.models.nnunet", multiple=16),
    "missformer": Entry("mvl_dist.models.missformer", multiple=32),
    "transunet": Entry("mvl_dist.models.transunet", multiple=16),
    "swin_unet": Entry("mvl_dist.models.swin_unet", multiple=32),
    "swin_unetr": Entry("mvl_dist.models.swin_unetr", multiple=32, more_than_one=True),
}


@dataclass(frozen=True)
class ModelSpec:
    """What a builder is given.

    Attributes:
        out_channels: logits a voxel, the background class of a softmax included.
        grid: D, H, W of the image in voxels; `check_model` has passed.
        spacing_mm: size of the grid's voxels along D, H, W, the task's median.
        donor: the language-model block, for models that need one.
    """

    config: ModelConfig
    in_channels: int
    out_channels: int
    grid: Shape3D
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
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


def check_model(config: ModelConfig, grid: Shape3D) -> None:
    """Refuse a network that cannot be built; needs no torch.

    Raises:
        UserError: unknown name, a position beyond the blocks (where the language model would never
            be called), a block to be trained in eight bits, or a grid that the model cannot take.
    """
    check_model_name(config.name)
    reads = MODELS[config.name].reads
    if "llm_position" in reads and not 0 <= config.llm_position <= config.depth:
        raise UserError(
            f"--llm-position {config.llm_position} is out of range: 0 to --depth {config.depth}"
        )
    held = config.frozen_precision
    if "frozen_precision" in reads and held != "model" and config.train_block:
        raise UserError(
            f"--frozen-precision {held} holds the block in eight bits, which cannot be trained: "
            "leave it out, or --train-block"
        )
    check_grid(config, grid)


def check_grid(config: ModelConfig, grid: Shape3D) -> None:
    """Refuse a grid that the model cannot take; needs no torch.

    Raises:
        UserError: says which sizes fit.
    """
    entry = MODELS[config.name]
    multiples = (entry.multiple,) * 3 if entry.multiple else config.patch
    what = f"{config.name} needs" if entry.multiple else "the patch needs"
    for axis, size, multiple in zip("DHW", grid, multiples, strict=True):
        if size % multiple:
            below, above = size // multiple * multiple, (size // multiple + 1) * multiple
            fits = f"{below} or {above} fits" if below else f"{above} fits"
            raise UserError(
                f"--grid axis {axis} is {size}; {what} a multiple of {multiple}: {fits}"
            )
    if entry.more_than_one and grid == multiples:
        size = entry.multiple
        raise UserError(
            f"--grid {size} {size} {size} leaves {config.name} one voxel at its deepest stage, "
            f"over which it cannot normalise: make one axis {2 * size} or more"
        )


def build_model(
    config: ModelConfig,
    in_channels: int,
    out_channels: int,
    grid: Shape3D,
    donor: Donor | None = None,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> nn.Module:
    """Build a model by its name; initial weights follow torch's global seed.

    Raises:
        UserError: what `check_model` refuses, or a LoRA target that the donor lacks.
    """
    check_model(config, grid)
    builder = importlib.import_module(MODELS[config.name].module).build
    return builder(ModelSpec(config, in_channels, out_channels, grid, spacing_mm, donor))
