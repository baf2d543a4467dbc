"""How far a training is, shown by rank 0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from mvl_dist.distributed import env_rank


def progress_bar(description: str, total: int) -> tuple[Any, Callable[..., None]]:
    """A bar on rank 0 (a plain line each tenth where there is no terminal), nothing elsewhere.

    Returns:
        A context manager, and `advance(steps, **fields)` that moves the bar and shows fields.
    """
    if env_rank() != 0:
        return contextlib.nullcontext(), lambda steps=1, **fields: None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if console.is_terminal:
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        task = progress.add_task(description, total=total, shown="")

        def advance(steps: int = 1, **fields: str) -> None:
            progress.update(
                task, advance=steps, shown="  ".join(f"{k} {v}" for k, v in fields.items())
            )

        return progress, advance

    started, done, printed = time.monotonic(), 0, 0

    def advance_plain(steps: int = 1, **fields: str) -> None:
        nonlocal done, printed
        done += steps
        if total and done * 10 // total > printed:
            printed = done * 10 // total
            eta = (time.monotonic() - started) * (total - done) / done
            shown = "  ".join(f"{key} {value}" for key, value in fields.items())
            print(f"{description} {done}/{total}  {shown}  ETA {eta:.0f} s", flush=True)

    return contextlib.nullcontext(), advance_plain
