"""What every source of weights offers, and fresh weights, the source that is no file.

Files are read in safetensors_folder.py, torch_folder.py, gguf_file.py and meta_checkpoint.py. None
of them is ever unpickled: safetensors and GGUF hold data only, and torch's own files are read with
`weights_only=True`. torch is imported when tensors are read, so that a wrong path shows at once.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    },
    "llama-3.1-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
    },
    "minilm-l6": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
    "biobert": BERT_BASE,
    "clinicalbert": BERT_BASE,
    "biogpt": {
        "model_type": "biogpt",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}


class Source(ABC):
    """A language model's weights somewhere.

    Attributes:
        config: as in transformers' config.json.
    """

    config: dict[str, Any]

    @property
    def num_layers(self) -> int:
        """Layers of the whole language model."""
        return int(self.config["num_hidden_layers"])

    @abstractmethod
    def check(self, layers: Sequence[int]) -> None:
        """Refuse layers whose tensors are not there, as far as headers tell."""

    @abstractmethod
    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read the tensors that `names` points to (parameter in `block` -> name in a checkpoint).

        Raises:
            UserError: one is missing, or the file is damaged.
        """


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object, or say what is wrong with the file."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{what}: {path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{what}: {path} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{what}: {path} holds no JSON object")
    return values


def missing_tensors(path: Path, names: Sequence[str]) -> UserError:
    """The error for tensors that a file does not hold."""
    return UserError(
        f"donor {path}: {len(names)} tensors of the layers asked for are not there (first: "
        f"{names[0]}); choose layers that it holds"
    )


def unpermute(name: str, tensor: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Rows of q and k from interleaved rotary pairs (Meta, llama.cpp) to transformers' halves.

    Without a rotary embedding either order gives the same attention; the tensors are still made
    equal to those of transformers, so that one donor has one checksum.
    """
    heads = {
        "q_proj": int(config["num_attention_heads"]),
        "k_proj": int(config["num_key_value_heads"]),
    }.get(name.split(".")[-2])
    if heads is None or tensor.ndim != 2 or tensor.shape[0] % (2 * heads):
        return tensor
    rows, columns = tensor.shape
    pairs = tensor.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


class RandomWeights(Source):
    """Fresh weights of a language model's shape: the control that the paper lacks."""

    def __init__(self, shape: str) -> None:
        self.shape = shape
        path = Path(shape).expanduser()
        if shape in KNOWN_SHAPES:
            self.config = KNOWN_SHAPES[shape]
        elif path.exists():
            file = path / "config.json" if path.is_dir() else path
            self.config = read_json(file, f"donor random:{shape}")
        else:
            raise UserError(
                f"donor random:{shape}: no such shape; known: {', '.join(KNOWN_SHAPES)}, or give "
                "the path of a config.json"
            )

    def check(self, layers: Sequence[int]) -> None:
        """Every layer can be drawn."""

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Draw weights as transformers initialises them: N(0, initializer_range), norms 1."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        deviation = float(self.config.get("initializer_range", 0.02))
        tensors = {}
        for inside, parameter in block.named_parameters():
            if parameter.ndim == 1:
                fill = torch.zeros if inside.endswith("bias") else torch.ones
                tensors[names[inside]] = fill(parameter.shape)
            else:
                drawn = torch.randn(parameter.shape, generator=generator)
                tensors[names[inside]] = drawn * deviation
        return tensors
