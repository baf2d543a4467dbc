"""A tiny Llama, and its folder as the Hub has them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.models.donors.tiny import CONFIG


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A whole tiny Llama by transformers, with norms that are not 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 3.0)
    return whole


@pytest.fixture
def folder(model: torch.nn.Module, tmp_path: Path) -> Path:
    """The model as a Hub folder in two shards, the last layer and the norm in the second."""
    path = tmp_path / "donor"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    second = {n: t for n, t in model.state_dict().items() if ".layers.2." in n or "model.norm" in n}
    first = {n: t for n, t in model.state_dict().items() if n not in second}
    weight_map = {}
    for file, tensors in (("a.safetensors", first), ("b.safetensors", second)):
        save_file({n: t.clone() for n, t in tensors.items()}, path / file)
        weight_map |= dict.fromkeys(tensors, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path
