"""llama.cpp's format. Its header is walked here; its tensors are dequantised by the gguf package.

gguf's own reader makes an array of every word of the vocabulary: 2.8 s for SmolLM2, where this
takes 0.03 s. See github.com/ggml-org/ggml/blob/master/docs/gguf.md for the format.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError
from mvl_dist.models.donors.sources import Source, missing_tensors, unpermute

if TYPE_CHECKING:
    import torch
    from torch import nn

# The format's value types: struct's letter of each number.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
NUMBERS[12] = "d"
TEXT, ARRAY = 8, 9


@dataclass(frozen=True)
class Held:
    """A tensor in the file: ggml's number of its type, shape (slowest axis first), first byte."""

    kind: int
    shape: tuple[int, ...]
    start: int


class _Cursor:
    """Walks little-endian values from the file's start on."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.data, self.place)
        self.place += struct.calcsize(f"<{letter}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        start, self.place = self.place, self.place + length
        return self.data[start : self.place].decode()

    def value(self, kind: int) -> Any:
        """A number or a text; an array is skipped and None: no size of a block is one."""
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            self.place += count * struct.calcsize(f"<{NUMBERS[inner]}")
        elif inner == TEXT:
            for _ in range(count):
                length = self.number("Q")
                self.place += length
        else:
            raise ValueError(f"array of type {inner}")
        return None


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Held]]:
    """Fields and tensors of a GGUF file, versions 2 and 3.

    Raises:
        ValueError, struct.error, KeyError: not GGUF, or cut off.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        cursor = _Cursor(data)
        cursor.place = 4
        version = cursor.number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
        fields = {}
        for _ in range(field_count):
            key = cursor.text()
            fields[key] = cursor.value(cursor.number("I"))
        relative = {}
        for _ in range(tensor_count):
            name = cursor.text()
            fastest_first = [cursor.number("Q") for _ in range(cursor.number("I"))]
            relative[name] = Held(
                cursor.number("I"), tuple(reversed(fastest_first)), cursor.number("Q")
            )
        alignment = int(fields.get("general.alignment") or 32)
        first = -(-cursor.place // alignment) * alignment
    tensors = {n: Held(held.kind, held.shape, first + held.start) for n, held in relative.items()}
    return fields, tensors


def byte_shape(held: Held) -> tuple[int, ...]:
    """Shape of a tensor's bytes: the last axis in blocks of its type.

    Raises:
        ValueError: a type that the gguf package does not know.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    return quant_shape_to_byte_shape(held.shape, GGMLQuantizationType(held.kind))


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
        self.path = path
        try:
            fields, self._held = read_header(path)
        except (OSError, ValueError, struct.error, KeyError, OverflowError) as error:
            raise UserError(
                f"donor {path}: not a whole GGUF file ({type(error).__name__}: {error})"
            ) from error
        architecture = fields.get("general.architecture")
        if architecture != "llama":
            raise UserError(
                f"donor {path}: GGUF of architecture '{architecture}'; 'llama' is supported"
            )
        keys = {
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "rms_norm_eps": "attention.layer_norm_rms_epsilon",
            "head_dim": "attention.key_length",
        }
        sizes = {ours: fields.get(f"llama.{theirs}") for ours, theirs in keys.items()}
        sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or sizes["num_attention_heads"]
        if sizes["head_dim"] is None:  # optional in the format: hidden size / heads
            del sizes["head_dim"]
        for ours, value in sizes.items():
            if value is None:
                raise UserError(f"donor {path}: GGUF without one value llama.{keys[ours]}")
        self.config = {"model_type": "llama", **sizes}

    def check(self, layers: Sequence[int]) -> None:
        """Each layer must have a tensor, and the file must be as long as its header says."""
        names = [f"blk.{layer}.attn_q.weight" for layer in layers]
        absent = [name for name in names if name not in self._held]
        if absent:
            raise missing_tensors(self.path, absent)
        size = self.path.stat().st_size
        for name, held in self._held.items():
            try:
                end = held.start + math.prod(byte_shape(held))
            except ValueError:  # of a type that gguf does not know: told when it is wanted
                end = held.start
            if end > size:
                raise UserError(
                    f"donor {self.path}: not a whole GGUF file ({name} ends at byte {end:,}, the "
                    f"file at {size:,}): fetch it again"
                )

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read through a memory map: other tensors stay on disk."""
        import numpy as np
        import torch
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        wanted = {name: self._gguf_name(name) for name in names.values()}
        absent = [inside for inside in wanted.values() if inside not in self._held]
        if absent:
            raise missing_tensors(self.path, absent)
        data = np.memmap(self.path, dtype=np.uint8, mode="r")
        tensors = {}
        for name, inside in wanted.items():
            held = self._held[inside]
            try:
                shape = byte_shape(held)
                raw = data[held.start : held.start + math.prod(shape)].reshape(shape)
                values = dequantize(raw, GGMLQuantizationType(held.kind))
            except (ValueError, NotImplementedError) as error:
                raise UserError(
                    f"donor {self.path}: {inside} cannot be read ({error}): the file is cut off, "
                    "or quantised in a way that the gguf package does not undo"
                ) from error
            tensor = torch.from_numpy(np.array(values, dtype=np.float32))
            tensors[name] = unpermute(name, tensor, self.config)
        return tensors

    def _gguf_name(self, name: str) -> str:
        if name == "model.norm.weight":
            return "output_norm.weight"
        _, _, layer, *path, kind = name.split(".")
        return f"blk.{layer}.{self.NAMES.get('.'.join(path), '.'.join(path))}.{kind}"
