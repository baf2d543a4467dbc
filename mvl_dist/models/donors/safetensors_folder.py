"""transformers' layout: config.json beside safetensors files; read by header, without torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvl_dist.errors import UserError
from mvl_dist.models.donors.sources import Source, read_json
from mvl_dist.models.donors.spellings import find_names

if TYPE_CHECKING:
    import torch
    from torch import nn


class SafetensorsFolder(Source):
    """config.json beside one safetensors file or several with an index (transformers' layout)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json", f"donor {folder}")

    def _files(self) -> dict[str, Path]:
        """Tensor name -> file; shards that hold nothing of use need not be there."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index, f"donor {self.folder}").get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(file, str) for file in weight_map.values()
            ):
                raise UserError(f"donor {self.folder}: {index.name} maps no tensors to files")
            return {name: self.folder / file for name, file in weight_map.items()}
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"donor {self.folder}: holds no .safetensors file and no pytorch_model.bin"
            )
        return {name: file for file in files for name in safetensors_names(file)}

    def check(self, layers: Sequence[int]) -> None:
        """Each layer must have a tensor, in a file that is there."""
        files = self._files()
        for layer in layers:
            found = {file for name, file in files.items() if layer_number(name) == layer}
            if not found:
                held = sorted({layer_number(name) for name in files} - {-1})
                raise UserError(
                    f"donor {self.folder} does not hold layer {layer} (it holds "
                    f"{', '.join(map(str, held[:8])) or 'none'}); choose among them"
                )
            for file in found:
                safetensors_names(file)

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read tensor by tensor: other layers are never touched."""
        from safetensors import SafetensorError, safe_open

        files = self._files()
        found = find_names(names.values(), files, self.folder)
        tensors = {}
        for file in sorted({files[inside] for inside in found.values()}):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name, inside in found.items():
                        if files[inside] == file:
                            tensors[name] = opened.get_tensor(inside)
            except (OSError, SafetensorError) as error:
                raise UserError(f"donor {file}: missing or damaged ({error})") from error
        return tensors


def layer_number(name: str) -> int:
    """Layer that a tensor belongs to, -1 for none (model.layers.3.x, encoder.layer.3.x)."""
    match = re.search(r"\blayers?\.(\d+)\.", name)
    return int(match[1]) if match else -1


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
