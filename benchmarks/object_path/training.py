"""A user's training out of a place, and how long its steps waited for data, as MLflow has it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from mvl_dist.place import StorePlace
from tests.system.launching import curve, launch

EPOCHS = 3


@dataclass(frozen=True)
class Waits:
    """Of an epoch of a training.

    Attributes:
        first_ms: of its first step: in the first epoch the loader's processes start meanwhile.
        step_ms: median of the other steps (`data_wait_ms`).
        share: of the other steps' time.
        sample_ms: of the other steps' time a sample, the waits among it.
    """

    first_ms: float
    step_ms: float
    share: float
    sample_ms: float


def train(
    place: StorePlace, output: Path, batch: int, arguments: list[str], **environment: str
) -> list[Waits]:
    """`accelerate launch ... mvl_dist/train.py` on one CPU rank; the waits of each epoch.

    Raises:
        SystemExit: it failed.
    """
    done = launch(
        [
            *("--store", str(place), "--output", str(output), "--epochs", str(EPOCHS)),
            *("--batch-size", str(batch), *arguments),
        ],
        config="cpu1",
        **environment,
    )
    if done.code:
        raise SystemExit(done.errors)
    by_step, shares = curve(output, "data_wait_ms"), curve(output, "data_wait_share")
    waits = [by_step[step] for step in sorted(by_step)]
    steps = len(waits) // EPOCHS
    found = []
    for epoch, share in enumerate(shares[step] for step in sorted(shares)):
        first, *others = waits[epoch * steps : (epoch + 1) * steps]
        # MLflow's share is of the whole epoch.
        rest_ms = (first + sum(others)) / share - first
        found.append(
            Waits(
                first_ms=first,
                step_ms=statistics.median(others),
                share=sum(others) / rest_ms,
                sample_ms=rest_ms / steps / batch,  # the first step computes too
            )
        )
    return found
