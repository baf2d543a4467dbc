"""What a model costs: parameters, GFLOP, time, device hours, memory."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

from mvl_dist.errors import UserError
from mvl_dist.report.results import Results, Slot
from mvl_dist.report.stats import Cell
from mvl_dist.study.cost import Shape, shape_of, training_tflop
from mvl_dist.tasks import TASKS

COSTS = (
    "GFLOP: counted, a forward at batch 1, two a multiply-add. ms: median forward at batch 1 on "
    "the device that the run was tested on, so only comparable on one device."
)


def plain(value: float, digits: int, printed: str = "") -> Cell:
    """A number that is not over cases."""
    return Cell(value, digits=digits, paper=printed)


def parameters(slots: Sequence[Slot]) -> tuple[float, float]:
    """Trainable and frozen parameters in millions, NaN without a finished run."""
    for slot in slots:
        if slot.run and "parameters.trainable" in slot.run.params:
            counts = (slot.run.params[f"parameters.{kind}"] for kind in ("trainable", "frozen"))
            trained, frozen = (int(count) / 1e6 for count in counts)
            return trained, frozen
    return math.nan, math.nan


def _shape(slots: Sequence[Slot]) -> Shape | None:
    for slot in slots:
        if slot.run:
            return shape_of(slot.asked.config, TASKS.get(slot.task))
    return None


@functools.cache
def _forward_gflop(shape: Shape) -> float:
    from mvl_dist.models.empty import build_empty
    from mvl_dist.models.measure.flop import tflop_per_sample

    model = build_empty(shape.model, shape.in_channels, 1, shape.grid)
    return 1000 * tflop_per_sample(model, shape.in_channels, shape.grid)


def gflop(slots: Sequence[Slot]) -> float:
    """Counted GFLOP of a forward; NaN without a finished run, or where the donor is not here."""
    shape = _shape(slots)
    try:
        return _forward_gflop(shape) if shape else math.nan
    except UserError:
        return math.nan


def training_tflop_per_run(results: Results, slots: Sequence[Slot]) -> float:
    """Mean TFLOP that a finished run's training steps take; NaN where it cannot be counted."""
    shape = _shape(slots)
    try:
        one = training_tflop(shape) if shape else math.nan
    except UserError:
        return math.nan
    samples = [trained_samples(results, slot) for slot in slots if slot.run]
    return one * statistics.fmean(samples) if samples else math.nan


def trained_samples(results: Results, slot: Slot) -> float:
    """Cases that a run's training went through, the filled-up batches included."""
    showcase = results.source.showcase(slot.run) if slot.run else None
    if showcase is None:
        return math.nan
    optim = slot.asked.config.optim
    cases = int(showcase.about["counts"]["train"])
    return optim.epochs * math.ceil(cases / optim.batch_size) * optim.batch_size


def milliseconds(results: Results, slots: Sequence[Slot]) -> float:
    """Median forward time over the runs' test cases; NaN where no run kept it."""
    shown = [results.source.showcase(slot.run) for slot in slots if slot.run]
    times = [float(s.about["forward_ms"]) for s in shown if s]
    return statistics.median(times) if times else math.nan


def device_hours(results: Results, slot: Slot) -> float:
    """Hours of one device that a run's training and validation took; NaN if it kept no count.

    From the time of a sample of each epoch, so that what lay between an interruption and its
    resumption does not count.
    """
    showcase = results.source.showcase(slot.run) if slot.run else None
    if showcase is None or slot.run is None:
        return math.nan
    counts, optim = showcase.about["counts"], slot.asked.config.optim
    seen = math.ceil(counts["train"] / optim.batch_size) * optim.batch_size
    curve = results.source.curve
    trained = curve(slot.run, "train_device_seconds_per_sample").values()
    validated = curve(slot.run, "val_device_seconds_per_case").values()
    return (sum(trained) * seen + sum(validated) * counts["validation"]) / 3600


def peak_memory(results: Results, slots: Sequence[Slot]) -> tuple[float, str]:
    """Largest peak memory of a rank in GiB, and what it is of; NaN where no run kept it."""
    shown = [results.source.showcase(slot.run) for slot in slots if slot.run]
    known = [
        (float(s.about["peak_memory_gib"]), str(s.about["peak_memory_of"])) for s in shown if s
    ]
    return max(known, default=(math.nan, ""))


def devices(slots: Sequence[Slot]) -> str:
    """Devices that finished runs were trained on."""
    return ", ".join(sorted({slot.run.tags.get("device", "?") for slot in slots if slot.run}))
