"""Llama-like decoder layers, made bidirectional and position-free (paper section 3.1).

transformers' own layer classes are used. Three things they do by themselves are switched off:
without a mask, sdpa attention is causal unless `is_causal=False` is passed; the rotary embedding is
removed exactly by cos = 1, sin = 0; and some configs ask for dropout of the attention.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mvl_dist.kernels import dispatch
from mvl_dist.models.donors import llama_fused
from mvl_dist.models.donors.blocks import Block, building, names_in_checkpoint
from mvl_dist.models.donors.families import FAMILIES


class LlamaBlock(Block):
    """Decoder layers and the final RMSNorm: hidden states (B, T, H) -> (B, T, H).

    Attributes:
        recompute_mlp: compute the MLP's wide activations again in backward instead of keeping
            them; set by `llama_recomputed`.
    """

    recompute_mlp = False

    def __init__(self, layers: nn.ModuleList, norm: nn.Module, head_dim: int) -> None:
        super().__init__(layers, norm)
        self.head_dim = head_dim

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every token attends to every token; the order of tokens does not matter."""
        if dispatch.composes("donor_block", hidden, llama_fused.why_not(self)):
            return llama_fused.forward(self, hidden)
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
    family = FAMILIES[str(config["model_type"])]
    module, prefix = family.transformers, family.prefix
    classes = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    with building(config):
        config_class = getattr(classes, f"{prefix}Config")
        settings = config_class.from_dict({**config, "attention_dropout": 0.0})
        if settings.num_attention_heads % settings.num_key_value_heads:
            raise ValueError(
                f"{settings.num_attention_heads} heads cannot share "
                f"{settings.num_key_value_heads} key/value heads"
            )
        settings._attn_implementation = "sdpa"
        layer_class = getattr(classes, f"{prefix}DecoderLayer")
        layers = nn.ModuleList(layer_class(settings, index) for index in range(count))
        norm = getattr(classes, f"{prefix}RMSNorm")(settings.hidden_size, eps=settings.rms_norm_eps)
    head_dim = getattr(settings, "head_dim", None) or (
        settings.hidden_size // settings.num_attention_heads
    )
    return LlamaBlock(layers, norm, head_dim)


def tensor_names(block: LlamaBlock, layers: Sequence[int]) -> dict[str, str]:
    """Parameter name in the block -> tensor name in a checkpoint of transformers."""
    return names_in_checkpoint(block, layers, "model.layers", "model.norm")
