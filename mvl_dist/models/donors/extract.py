"""Write a language model's layers to a small folder that is itself a donor.

block.safetensors   the layers' tensors under their own names, and the final norm
config.json         the language model's, so that layer numbers keep their meaning
source.json         where they come from
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvl_dist.errors import UserError
from mvl_dist.models.donors import absolute_layers, open_source
from mvl_dist.store import full_disk_is_a_user_error


@dataclass(frozen=True)
class Extracted:
    """What `extract` wrote."""

    folder: Path
    layers: tuple[int, ...]
    megabytes: float
    checksum: str


def extract(source: str, layers: Sequence[int], output: Path, seed: int = 0) -> Extracted:
    """Write the layers of `source` into the folder `output`; it appears when it is whole.

    Half precision is kept as stored; what is dequantised is written as float32, so that the donor
    is the same, bit for bit, read from either. A folder that already holds the same is left alone.

    Raises:
        UserError: whatever is wrong with the source, a folder that holds something else, or a full
            disk; nothing is left then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from mvl_dist.models.donors import llama
    from mvl_dist.models.donors.blocks import checksum, load_tensors

    opened = open_source(source)
    numbers = absolute_layers(source, layers, opened.num_layers)
    block = llama.empty_block(opened.config, len(numbers))
    names = llama.tensor_names(block, numbers)
    tensors = opened.read(names, seed=seed, block=block)
    load_tensors(block, names, tensors, source)  # config and shapes belong together
    about = {"source": source, "layers": list(numbers), "checksum": checksum(tensors)}
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    done = Extracted(output, numbers, size, str(about["checksum"]))
    if output.exists():
        try:
            if json.loads((output / "source.json").read_text())["checksum"] == done.checksum:
                return done
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{output} holds something else: delete it or choose another --output")
    partial = output.with_name(f".partial-{output.name}")
    try:
        with full_disk_is_a_user_error(output.parent):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / "config.json").write_text(json.dumps(dict(opened.config), indent=1))
            (partial / "source.json").write_text(json.dumps(about, indent=1))
            save_file(tensors, partial / "block.safetensors", metadata={"format": "pt"})
            partial.rename(output)
    except SafetensorError as error:
        raise UserError(
            f"cannot write to {output.parent} ({error}); nothing half-written was left: make room "
            "and run the same command again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done
