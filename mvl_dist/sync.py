"""`mvl sync FOLDER ...`: send what journals of runs still hold to MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvl_dist.ended_runs import sync
from mvl_dist.errors import UserError
from mvl_dist.journal import RUN_FILE


@dataclass(frozen=True)
class SyncArguments:
    """Send what journals of runs still hold to MLflow ($MLFLOW_TRACKING_URI, else where each run
    belongs)."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, as printed when a training ends, or the output folder above them."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl sync`."""
    for folder in tyro.cli(SyncArguments, args=list(argv), prog="mvl sync").folders:
        for run in _runs(folder):
            print(f"{run}: {sync(run)} entries sent")
    return 0


def _runs(folder: Path) -> Iterator[Path]:
    if (folder / RUN_FILE).exists():
        yield folder
        return
    found = sorted(file.parent for file in folder.glob(f"*/*/{RUN_FILE}"))
    if not found:
        raise UserError(f"{folder}: no run of mvl_dist/train.py there ({RUN_FILE} is missing)")
    yield from found
