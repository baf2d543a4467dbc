"""`mvl weights`: extract a frozen block from a language model, or list the known donors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mvl_dist.errors import UserError
from mvl_dist.models.donors import KNOWN_DONORS, check_donor


@dataclass(frozen=True)
class Extract:
    """Write layers of a language model to a small folder, to be passed as --donor."""

    source: str
    """Known name, folder with weights, .gguf or .pth file, or random:SHAPE."""
    output: Path
    """Folder to write: block.safetensors, config.json, source.json."""
    layers: tuple[int, ...] | Literal["all"] = (-1,)
    """Layers, in order; negative numbers count from the last; or `all`."""


@dataclass(frozen=True)
class ListDonors:
    """Show the known donors and whether they are here."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl weights`."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"extract": Extract, "list": ListDonors}, args=list(argv), prog="mvl weights"
    )
    if isinstance(command, Extract):
        check_donor(command.source, command.layers)
        from mvl_dist.models.donors.extract import extract

        done = extract(command.source, command.layers, command.output)
        layers = ", ".join(map(str, done.layers))
        print(f"{done.folder}: layer {layers} of {command.source}, {done.megabytes:.1f} MB")
        return 0
    for name in KNOWN_DONORS:
        try:
            check_donor(name, (-1,))
            print(f"{name}: found")
        except UserError as error:
            print(f"{name}: absent; {error}")
    return 0
