"""Llama-like decoder layers, made bidirectional and position-free (paper section 3.1).

transformers' own layer classes are used. Two things they do by themselves are switched off:
without a mask, sdpa attention is causal unless `is_causal=False` is passed; and the rotary
embedding is removed exactly by cos = 1, sin = 0.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mvl_dist.errors import UserError
from mvl_dist.models.donors.families import FAMILIES


class LlamaBlock(nn.Module):
    """Decoder layers and the final RMSNorm: hidden states (B, T, H) -> (B, T, H)."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module, head_dim: int) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm
        self.head_dim = head_dim

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every token attends to every token; the order of tokens does not matter."""
        shape = (1, hidden.shape[1], self.head_dim)
        no_rotation = (hidden.new_ones(shape), hidden.new_zeros(shape))
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=None, position_embeddings=no_rotation, is_causal=False
            )
        return self.norm(hidden)


def empty_block(config: Mapping[str, Any], count: int) -> LlamaBlock:
    """A block of `count` layers without weights (meta device).

    Args:
        config: the language model's config.json, of a model type in FAMILIES.

    Raises:
        UserError: a config that transformers refuses.
    """
    model_type = str(config["model_type"])
    module, prefix = FAMILIES[model_type].transformers, FAMILIES[model_type].prefix
    classes = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    config_class = getattr(classes, f"{prefix}Config")
    try:
        settings = config_class.from_dict(dict(config))
        if settings.num_attention_heads % settings.num_key_value_heads:
            raise ValueError(
                f"{settings.num_attention_heads} heads cannot share "
                f"{settings.num_key_value_heads} key/value heads"
            )
        settings._attn_implementation = "sdpa"
        with torch.device("meta"):
            layer_class = getattr(classes, f"{prefix}DecoderLayer")
            layers = nn.ModuleList(layer_class(settings, index) for index in range(count))
            norm = getattr(classes, f"{prefix}RMSNorm")(
                settings.hidden_size, eps=settings.rms_norm_eps
            )
    except Exception as error:  # transformers raises whatever its validation stumbles over
        raise UserError(
            f"donor config of type '{model_type}' is not usable: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    head_dim = getattr(settings, "head_dim", None) or (
        settings.hidden_size // settings.num_attention_heads
    )
    return LlamaBlock(layers, norm, head_dim)


def tensor_names(block: LlamaBlock, layers: Sequence[int]) -> dict[str, str]:
    """Parameter name in the block -> tensor name in a checkpoint of transformers."""
    names = {}
    for inside, _ in block.named_parameters():
        part, _, rest = inside.partition(".")
        if part == "norm":
            names[inside] = f"model.norm.{rest}"
        else:
            index, _, parameter = rest.partition(".")
            names[inside] = f"model.layers.{layers[int(index)]}.{parameter}"
    return names
