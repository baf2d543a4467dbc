"""MedVisionLlama: a frozen language-model block inside the ViT (paper section 3.1, equation 2).

    tokens -> first `llm_position` ViT blocks -> V_D1 -> block, + its input -> V_D2 -> other blocks

The paper's text and Figure 1 put the language model between encoder and decoder (position 16 of
16); the published code puts it before the positions and all blocks (position 0). V_D1 and V_D2 are
a frozen random linear with a trained low-rank update and bias (section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mvl_dist.errors import UserError
from mvl_dist.kernels import dispatch, lora_linear
from mvl_dist.models import adapted, frozen
from mvl_dist.models.vit import ViTParts

if TYPE_CHECKING:
    from mvl_dist.config import LoRAConfig
    from mvl_dist.models import ModelSpec


class Mappers(nn.Module):
    """V_D1 into the language model's width, V_D2 back from it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, hidden)
        self.back = nn.Linear(hidden, width)

    def map(self, linear: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """One of the two, with its adapter in one pass where that can be."""
        if not adapted.has_adapter(linear):
            return linear(tokens)
        if dispatch.composes("mappers", tokens, adapted.why_not([linear])):
            return dispatch.run(lora_linear, tokens, adapted.parts([linear]))[0]
        return linear(tokens)


class RefinedViT(nn.Module):
    """A ViT whose tokens are refined after `llm_position` blocks; a subclass says how."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.position = spec.config.llm_position
        # Before all else, so that the ViT begins with the weights that ViT-Baseline has.
        self.vit = ViTParts(spec)

    def refine(self, tokens: torch.Tensor) -> torch.Tensor:
        """P -> Q of equation 2: (B, T, width) -> (B, T, width)."""
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> logits (B, R, D, H, W)."""
        tokens = self.vit.embedding(image)
        if self.position == 0:  # the published code adds positions after the language model
            tokens = self.vit.positions(self.refine(tokens))
        else:
            tokens = self.vit.positions(tokens)
        for number, block in enumerate(self.vit.blocks, start=1):
            tokens = block(tokens)
            if number == self.position:
                tokens = self.refine(tokens)
        return self.vit.head(tokens)


class MedVisionLlama(RefinedViT):
    """ViT with a block of a language model; parts: `vit`, `mappers`, `llm`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if spec.donor is None:
            raise ValueError(f"{spec.config.name} is built around a donor")
        self.mappers = Mappers(spec.config.width, spec.donor.hidden_size)
        self.llm = spec.donor.block

    def refine(self, tokens: torch.Tensor) -> torch.Tensor:
        """P -> Q of equation 2: (B, T, width) -> (B, T, width)."""
        hidden = self.mappers.map(self.mappers.into, tokens)
        return self.mappers.map(self.mappers.back, self.llm(hidden) + hidden)


def linear_names(block: nn.Module) -> list[str]:
    """Names that LoRA can target in a block: the last part of each linear's path."""
    names = (name for name, module in block.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def add_lora(model: MedVisionLlama, lora: LoRAConfig, train_block: bool) -> None:
    """Freeze block and mapper weights, and give them low-rank updates through PEFT, in place.

    With `train_block` the block itself is trained and gets no adapters.

    Raises:
        UserError: a target that is no linear of the block.
    """
    from peft import LoraConfig, inject_adapter_in_model

    available = linear_names(model.llm)
    for target in lora.targets:
        if target not in available and not train_block:
            raise UserError(
                f"--lora-targets {target}: no such linear in the donor's block; "
                f"it has {', '.join(available)}"
            )
    settings = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0}
    # PEFT freezes all that it does not add, so the two parts are injected one by one.
    inject_adapter_in_model(LoraConfig(target_modules=["into", "back"], **settings), model.mappers)
    for name, parameter in model.mappers.named_parameters():
        if name.endswith("base_layer.bias"):
            parameter.requires_grad_(True)
    model.llm.requires_grad_(train_block)
    if lora.targets and not train_block:
        inject_adapter_in_model(
            LoraConfig(target_modules=list(lora.targets), **settings), model.llm
        )


def build(spec: ModelSpec) -> nn.Module:
    """Build MedVisionLlama around `spec.donor`.

    Raises:
        UserError: a LoRA target that is no linear of the block, or a block that FP8 cannot hold.
    """
    model = MedVisionLlama(spec)
    add_lora(model, spec.config.lora, spec.config.train_block)
    frozen.hold(model.llm, spec.config.frozen_precision)
    return model
