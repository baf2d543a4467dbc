"""Which language models can lend a layer: model type -> the file here that knows it.

A family's file offers `empty_block(config, count)` and `tensor_names(block, layers)`; a new family
is one file and one line below. This table needs no torch, so that a wrong donor shows at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mvl_dist.errors import UserError


@dataclass(frozen=True)
class Family:
    """Where a model type's layer is built.

    Attributes:
        file: module of this package.
        transformers: for several model types in one file: `transformers.models.X.modeling_X`.
        prefix: of the classes in there.
    """

    file: str
    transformers: str = ""
    prefix: str = ""


FAMILIES = {
    "llama": Family("llama", "llama", "Llama"),
    "mistral": Family("llama", "mistral", "Mistral"),
    "qwen2": Family("llama", "qwen2", "Qwen2"),
    "qwen3": Family("llama", "qwen3", "Qwen3"),
    "bert": Family("bert"),
    "biogpt": Family("biogpt"),
}


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Refuse a config that no family here can build from.

    Raises:
        UserError: unsupported model type, or no usable size.
    """
    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(
            f"donor '{source}': its config.json names no model_type (as old BERT checkpoints): add "
            f'"model_type": one of {", ".join(FAMILIES)}'
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"donor '{source}': model type '{model_type}': supported are {', '.join(FAMILIES)}"
        )
    for key in ("hidden_size", "num_hidden_layers"):
        value = config.get(key)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"donor '{source}': '{key}' of its config is {value!r}, not a whole number above 0"
            )


def family_of(model_type: str) -> ModuleType:
    """The module that builds blocks of this model type; imports torch."""
    return importlib.import_module(f"{__package__}.{FAMILIES[model_type].file}")
