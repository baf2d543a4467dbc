"""BERT-like encoder layers (BioBERT, ClinicalBERT, MiniLM), without their positions.

Each layer ends with its own norm (post-LN), and the model has none beyond them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from mvl_dist.models.donors.blocks import Block, building, names_in_checkpoint

# Dropout must not act while the model around the block trains; cross-attention is a decoder's, and
# has nothing to look at; chunks must divide the number of tokens and change nothing but memory.
SWITCHED_OFF = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
}


def empty_block(config: Mapping[str, Any], count: int) -> Block:
    """A block of `count` layers without weights (meta device).

    Args:
        config: the language model's config.json, of model type `bert`.

    Raises:
        UserError: a config that transformers refuses.
    """
    with building(config):
        settings = BertConfig.from_dict({**config, **SWITCHED_OFF})
        settings._attn_implementation = "sdpa"
        layers = nn.ModuleList(BertLayer(settings, index) for index in range(count))
    return Block(layers, nn.Identity())


def tensor_names(block: Block, layers: Sequence[int]) -> dict[str, str]:
    """Parameter name in the block -> tensor name in a checkpoint of transformers."""
    return names_in_checkpoint(block, layers, "bert.encoder.layer")
