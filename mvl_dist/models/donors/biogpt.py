"""BioGPT's decoder layers (pre-LN), made bidirectional, without their learned positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.models.biogpt.configuration_biogpt import BioGptConfig
from transformers.models.biogpt.modeling_biogpt import BioGptDecoderLayer

from mvl_dist.models.donors.blocks import Block, building, names_in_checkpoint

# Dropout must not act while the model around the block trains. LayerDrop is the whole model's, not
# the layer's: it cannot act here.
SWITCHED_OFF = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "activation_dropout": 0.0,
}


def empty_block(config: Mapping[str, Any], count: int) -> Block:
    """A block of `count` layers and the final norm, without weights (meta device).

    Args:
        config: the language model's config.json, of model type `biogpt`.

    Raises:
        UserError: a config that transformers refuses.
    """
    with building(config):
        settings = BioGptConfig.from_dict({**config, **SWITCHED_OFF})
        settings._attn_implementation = "sdpa"
        layers = nn.ModuleList(BioGptDecoderLayer(settings, index) for index in range(count))
        # transformers leaves layer_norm_eps aside in every norm of BioGPT: 1e-5, torch's own.
        norm = nn.LayerNorm(settings.hidden_size)
    return Block(layers, norm)


def tensor_names(block: Block, layers: Sequence[int]) -> dict[str, str]:
    """Parameter name in the block -> tensor name in a checkpoint of transformers."""
    return names_in_checkpoint(block, layers, "biogpt.layers", "biogpt.layer_norm")
