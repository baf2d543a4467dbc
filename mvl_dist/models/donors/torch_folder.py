"""transformers' older layout: config.json beside pytorch_model.bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvl_dist.models.donors.sources import Source, read_json
from mvl_dist.models.donors.spellings import find_names
from mvl_dist.models.donors.torch_file import check_torch_file, open_torch_file, take_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = "pytorch_model.bin"


class TorchFolder(Source):
    """config.json beside pytorch_model.bin: a zip, or a legacy pickle, which is read whole."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / WEIGHTS
        self.config = read_json(folder / "config.json", f"donor {folder}")

    def check(self, layers: Sequence[int]) -> None:
        """The file must look whole; which layers it holds only its pickle says."""
        check_torch_file(self.file)

    def read(
        self, names: Mapping[str, str], seed: int, block: nn.Module
    ) -> dict[str, torch.Tensor]:
        """Read the tensors of the layers asked for, refusing anything that is not one."""
        held = open_torch_file(self.file)
        return take_tensors(self.file, held, find_names(names.values(), held, self.file))
