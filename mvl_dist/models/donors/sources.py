"""Files that hold language models: each knows its config, its layers, and how to read tensors.

Foreign files are never unpickled: safetensors and GGUF hold data only, and a .pth is read with
`weights_only=True`. torch and gguf are imported when tensors are read, so that a wrong path shows
at once.
"""

from __future__ import annotations

import json
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

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
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
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


def _missing(path: Path, names: Sequence[str]) -> UserError:
    return UserError(
        f"donor {path}: {len(names)} tensors of the layers asked for are not there (first: "
        f"{names[0]}); choose --donor-layers that the file has"
    )


class SafetensorsFolder(Source):
    """config.json beside one safetensors file or several with an index (transformers' layout)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json", f"donor {folder}")
        for key in ("model_type", "hidden_size", "num_hidden_layers"):
            if key not in self.config:
                raise UserError(f"donor {folder}: config.json has no '{key}'")

    def _files(self) -> dict[str, Path]:
        """Tensor name -> file; shards that hold nothing of use need not be there."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index, f"donor {self.folder}").get("weight_map", {})
            return {name: self.folder / file for name, file in weight_map.items()}
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"donor {self.folder}: holds no .safetensors file")
        return {name: file for file in files for name in safetensors_names(file)}

    def check(self, layers: Sequence[int]) -> None:
        """Each layer must have a tensor, in a file that is there."""
        files = self._files()
        for layer in layers:
            found = {file for name, file in files.items() if f".layers.{layer}." in name}
            if not found:
                held = sorted(
                    {int(n.split(".layers.")[1].split(".")[0]) for n in files if ".layers." in n}
                )
                raise UserError(
                    f"donor {self.folder} does not hold layer {layer} (it holds "
                    f"{', '.join(map(str, held[:8])) or 'none'}); choose --donor-layers among them"
                )
            for file in found:
                safetensors_names(file)

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read tensor by tensor: other layers are never touched."""
        from safetensors import SafetensorError, safe_open

        files = self._files()
        absent = [name for name in names.values() if name not in files]
        if absent:
            raise _missing(self.folder, absent)
        tensors = {}
        for file in sorted({files[name] for name in names.values()}):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in names.values():
                        if files[name] == file:
                            tensors[name] = opened.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise UserError(f"donor {file}: missing or damaged ({error})") from error
        return tensors


def safetensors_names(path: Path) -> list[str]:
    """Tensor names from a safetensors header, and that the file is as long as it says.

    Raises:
        UserError: missing, truncated or not safetensors.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((about["data_offsets"][1] for about in header.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError(f"{path.stat().st_size} bytes, {8 + length + end} expected")
    except FileNotFoundError as error:
        raise UserError(f"donor file {path} is missing") from error
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"donor file {path} is damaged ({error}): fetch it again") from error
    return list(header)


class GGUFFile(Source):
    """llama.cpp's format with architecture `llama`; quantised tensors are dequantised."""

    NAMES = {  # noqa: RUF012
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
            architecture = self._field("general.architecture")
            if architecture != "llama":
                raise UserError(
                    f"donor {path}: GGUF of architecture '{architecture}'; 'llama' is supported"
                )
            self.config = {
                "model_type": "llama",
                "hidden_size": self._field("llama.embedding_length"),
                "intermediate_size": self._field("llama.feed_forward_length"),
                "num_hidden_layers": self._field("llama.block_count"),
                "num_attention_heads": self._field("llama.attention.head_count"),
                "num_key_value_heads": self._field("llama.attention.head_count_kv"),
                "rms_norm_eps": self._field("llama.attention.layer_norm_rms_epsilon"),
            }
        except UserError:
            raise
        except Exception as error:  # the reader raises whatever its parsing stumbles over
            raise UserError(
                f"donor {path}: not a whole GGUF file ({type(error).__name__}: {error})"
            ) from error

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise UserError(f"donor {self.path}: GGUF without the field {key}")
        return field.contents()

    def check(self, layers: Sequence[int]) -> None:
        """Each layer must have a tensor."""
        held = {tensor.name for tensor in self._reader.tensors}
        absent = [f"blk.{n}.attn_q.weight" for n in layers if f"blk.{n}.attn_q.weight" not in held]
        if absent:
            raise _missing(self.path, absent)

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read through the memory map: other tensors stay on disk."""
        import numpy as np
        import torch
        from gguf.quants import dequantize

        held = {tensor.name: tensor for tensor in self._reader.tensors}
        wanted = {name: self._gguf_name(name) for name in names.values()}
        absent = [inside for inside in wanted.values() if inside not in held]
        if absent:
            raise _missing(self.path, absent)
        tensors = {}
        for name, inside in wanted.items():
            values = dequantize(held[inside].data, held[inside].tensor_type)
            tensor = torch.from_numpy(np.array(values, dtype=np.float32))
            tensors[name] = unpermute(name, tensor, self.config)
        return tensors

    def _gguf_name(self, name: str) -> str:
        if name == "model.norm.weight":
            return "output_norm.weight"
        _, _, layer, *path, kind = name.split(".")
        return f"blk.{layer}.{self.NAMES.get('.'.join(path), '.'.join(path))}.{kind}"


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


class MetaCheckpoint(Source):
    """Meta's consolidated.00.pth with params.json beside it."""

    NAMES = {  # noqa: RUF012
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"donor {path}: missing")
        if len(list(path.parent.glob("consolidated.*.pth"))) > 1:
            raise UserError(
                f"donor {path.parent}: several consolidated.*.pth (model-parallel) are not "
                "supported; use the model's safetensors"
            )
        params = read_json(path.parent / "params.json", f"donor {path}")
        try:
            dim, multiple = int(params["dim"]), int(params["multiple_of"])
            width = int(float(params.get("ffn_dim_multiplier") or 1) * int(2 * 4 * dim / 3))
            self.config = {
                "model_type": "llama",
                "hidden_size": dim,
                "intermediate_size": -(-width // multiple) * multiple,
                "num_hidden_layers": int(params["n_layers"]),
                "num_attention_heads": int(params["n_heads"]),
                "num_key_value_heads": int(params.get("n_kv_heads") or params["n_heads"]),
                "rms_norm_eps": float(params["norm_eps"]),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"donor {path.parent / 'params.json'}: not Meta's parameters "
                f"({type(error).__name__}: {error})"
            ) from error

    def check(self, layers: Sequence[int]) -> None:
        """Nothing beyond params.json can be told without reading the file."""

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read through a memory map, refusing anything that is not plain tensors."""
        import torch

        try:
            held = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"donor {self.path}: refused, it holds more than plain tensors (nothing of it was "
                "executed); use a safetensors file"
            ) from error
        except (OSError, RuntimeError, EOFError) as error:
            raise UserError(
                f"donor {self.path}: damaged or not a torch zip file "
                f"({' '.join(str(error).split())[:120]})"
            ) from error
        wanted = {name: self._meta_name(name) for name in names.values()}
        if not isinstance(held, dict):
            raise UserError(f"donor {self.path}: holds a {type(held).__name__}, not named tensors")
        absent = [inside for inside in wanted.values() if inside not in held]
        if absent:
            raise _missing(self.path, absent)
        return {
            name: unpermute(name, held[inside].clone(), self.config)
            for name, inside in wanted.items()
        }

    def _meta_name(self, name: str) -> str:
        if name == "model.norm.weight":
            return "norm.weight"
        _, _, layer, *path, kind = name.split(".")
        return f"layers.{layer}.{self.NAMES.get('.'.join(path), '.'.join(path))}.{kind}"


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
