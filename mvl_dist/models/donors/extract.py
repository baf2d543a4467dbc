"""Write a language model's layers to a small folder that is itself a donor.

block.safetensors   the layers' tensors under their own names, and the final norm
config.json         the language model's, so that layer numbers keep their meaning
source.json         where they come from
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL
from mvl_dist.models.donors import Layers, open_source, read_donor
from mvl_dist.models.donors.safetensors_folder import safetensors_names

BLOCK = "block.safetensors"


@dataclass(frozen=True)
class Extracted:
    """What `extract` wrote."""

    folder: Path
    layers: tuple[int, ...]
    megabytes: float
    checksum: str


def extract(source: str, layers: Layers, output: Path, seed: int = 0) -> Extracted:
    """Write the layers of `source` into the folder `output`; it appears when it is whole.

    Half precision is kept as stored; what is dequantised is written as float32, so that the donor
    is the same, bit for bit, read from either. A folder that already holds the same is left alone.

    Raises:
        UserError: whatever is wrong with the source, a folder that holds something else, or a full
            disk; nothing is left then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    opened = open_source(source)
    donor, tensors = read_donor(opened, source, layers, seed)
    about = {"source": source, "layers": list(donor.layers), "checksum": donor.checksum}
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    done = Extracted(output, donor.layers, size, donor.checksum)
    if _holds(output, donor.checksum):
        return done
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(
            f"{output} holds something else, or is damaged: delete it or choose another --output"
        )
    partial = output.with_name(f"{PARTIAL}{output.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed extraction
        partial.mkdir(parents=True)
        (partial / "config.json").write_text(json.dumps(dict(opened.config), indent=1))
        (partial / "source.json").write_text(json.dumps(about, indent=1))
        save_file(tensors, partial / BLOCK, metadata={"format": "pt"})
        partial.rename(output)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write to {output.parent} ({error}); nothing half-written was left: make room "
            "(or choose another --output) and run the same command again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def _holds(folder: Path, checksum: str) -> bool:
    """Whether a folder is a whole extraction with this checksum, as far as headers tell."""
    try:
        about = json.loads((folder / "source.json").read_text())
        safetensors_names(folder / BLOCK)
        return bool(about["checksum"] == checksum) and (folder / "config.json").is_file()
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False
