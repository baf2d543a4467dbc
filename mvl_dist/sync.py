"""`mvl sync RUN_FOLDER ...`: send what a run's journal still holds to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvl_dist.tracking import sync


@dataclass(frozen=True)
class SyncArguments:
    """Send what a run's journal still holds to MLflow."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, as printed when a training ends."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl sync`."""
    for folder in tyro.cli(SyncArguments, args=list(argv), prog="mvl sync").folders:
        print(f"{folder}: {sync(folder)} entries sent")
    return 0
