"""What every family shares: the block, its tensors' names, how it is filled, and its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mvl_dist.errors import UserError


class Block(nn.Module):
    """Layers of a language model and its final norm: hidden states (B, T, H) -> (B, T, H)."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every token attends to every token; the order of tokens does not matter."""
        for layer in self.layers:
            # Without a mask, sdpa attention is causal in a decoder unless it is told otherwise.
            hidden = layer(hidden, attention_mask=None, is_causal=False)
        return self.norm(hidden)


@contextmanager
def building(config: Mapping[str, Any]) -> Iterator[None]:
    """Build without weights (meta device) what a donor's config describes.

    Raises:
        UserError: transformers raised, whatever its validation stumbled over.
    """
    try:
        with torch.device("meta"):
            yield
    except Exception as error:
        raise UserError(
            f"donor config of type '{config['model_type']}' is not usable: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def names_in_checkpoint(
    block: nn.Module, layers: Sequence[int], stem: str, norm: str = ""
) -> dict[str, str]:
    """Parameter name in the block -> tensor name in a checkpoint of transformers.

    Args:
        layers: number in the language model of each layer of the block.
        stem: of the layers' tensors in a checkpoint, e.g. `model.layers`.
        norm: of the final norm's tensors, e.g. `model.norm`.
    """
    names = {}
    for inside, _ in block.named_parameters():
        part, _, rest = inside.partition(".")
        if part == "norm":
            names[inside] = f"{norm}.{rest}"
        else:
            index, _, parameter = rest.partition(".")
            names[inside] = f"{stem}.{layers[int(index)]}.{parameter}"
    return names


def load_tensors(
    block: nn.Module, names: Mapping[str, str], tensors: Mapping[str, torch.Tensor], source: str
) -> None:
    """Put tensors into a block that was built on the meta device, as float32.

    Args:
        names: parameter name in the block -> tensor name in the donor.

    Raises:
        UserError: a tensor's shape contradicts the donor's config, or it is quantised: int8 and
            float8 mean nothing without scales, which stand in tensors that are not read here.
    """
    wanted = dict(block.named_parameters())
    state = {}
    for inside, outside in names.items():
        got, expected = tuple(tensors[outside].shape), tuple(wanted[inside].shape)
        if got != expected:
            raise UserError(
                f"donor '{source}': {outside} has shape {got}, its config says {expected}; "
                "config and weights do not belong together"
            )
        dtype = tensors[outside].dtype
        if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise UserError(
                f"donor '{source}': {outside} is stored as {str(dtype).removeprefix('torch.')}: "
                "quantised weights are read from GGUF only; use the unquantised model"
            )
        state[inside] = tensors[outside].to(torch.float32)
    block.load_state_dict(state, assign=True)


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 (16 digits) over names and float32 values: independent of file format and dtype.

    Layer numbers count as part of the name, so two layers with equal weights differ.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
