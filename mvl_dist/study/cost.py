"""What a run costs in device-seconds, from runs that were measured.

A run takes epochs x (training cases x t + validation cases x v) + test cases x e, and crops in
place of training cases where it sees crops. Where runs of the same network and grid were measured
on the device, t is their median. Elsewhere t is the network's
counted TFLOP a training sample times the median of seconds per TFLOP over the networks that were
measured; the error of that is found by leaving out one network after another. v and e follow t by
their measured ratios.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mvl_dist.config import ModelConfig, RunConfig
from mvl_dist.models import MODELS
from mvl_dist.splits import NUM_FOLDS, TEST_FRACTION
from mvl_dist.tasks import TASKS, Task

# A forward is about a third of a training step, where nothing was measured.
VALIDATION_RATIO = 1 / 3


@dataclass(frozen=True)
class Shape:
    """What decides the work of a sample."""

    model: ModelConfig
    in_channels: int
    grid: tuple[int, int, int]
    resolution: str = "grid"


@dataclass(frozen=True)
class Measured:
    """One finished run; seconds are of one device."""

    shape: Shape
    train_seconds_per_sample: float
    validation_seconds_per_case: float
    test_seconds_per_case: float


@dataclass(frozen=True)
class Estimate:
    """What a run costs, and whether its own network was measured."""

    device_seconds: float
    measured: bool


def shape_of(config: RunConfig, task: Task | None) -> Shape:
    """The work of a sample of a run; what the model does not read is left out."""
    kept = {"name", *MODELS[config.model.name].reads}
    defaults = ModelConfig()
    fields = {
        key: getattr(config.model if key in kept else defaults, key) for key in vars(defaults)
    }
    channels = len(task.modalities) if task and config.data.channels == "all" else 1
    return Shape(ModelConfig(**fields), channels, config.data.grid, config.data.resolution)


@functools.lru_cache(maxsize=256)
def training_tflop(shape: Shape) -> float:
    """TFLOP of a training sample, counted without weights (`models.measure.flop`)."""
    from mvl_dist.models.empty import build_empty
    from mvl_dist.models.measure.flop import training_tflop_per_sample

    model = build_empty(shape.model, shape.in_channels, 1, shape.grid)
    return training_tflop_per_sample(model, shape.in_channels, shape.grid)


def case_counts(cases: int, fraction: float) -> tuple[int, int, int]:
    """Training, validation and test cases of one fold (sizes of `splits.make_split`)."""
    test = max(1, int(cases * TEST_FRACTION))
    validation = math.ceil((cases - test) / NUM_FOLDS)
    return max(1, round((cases - test - validation) * fraction)), validation, test


class CostModel:
    """Fitted to measured runs, or to a device of an assumed speed.

    Attributes:
        validation_ratio, test_ratio: seconds of a case over those of a training sample, by
            resolution.
        error: median relative error of the estimate by TFLOP, each network left out once; NaN with
            fewer than two networks.
    """

    def __init__(self, measured: Iterable[Measured], assumed_tflops: float = 0.0) -> None:
        self.groups: dict[Shape, list[Measured]] = {}
        for run in measured:
            self.groups.setdefault(run.shape, []).append(run)
        self.train = {
            shape: statistics.median(run.train_seconds_per_sample for run in runs)
            for shape, runs in self.groups.items()
        }
        every = [run for runs in self.groups.values() for run in runs]
        # A sliding window costs a case as many forwards as it has windows.
        self.validation_ratio, self.test_ratio = (
            {
                resolution: self._ratio(
                    [run for run in every if run.shape.resolution == resolution], seconds
                )
                for resolution in ("grid", "spaced")
            }
            for seconds in ("validation_seconds_per_case", "test_seconds_per_case")
        )
        speeds = {shape: t / training_tflop(shape) for shape, t in self.train.items()}
        self.assumed = not speeds
        self.seconds_per_tflop = (
            statistics.median(speeds.values()) if speeds else 1 / assumed_tflops
        )
        errors = []
        for shape, speed in speeds.items():
            others = [value for other, value in speeds.items() if other != shape]
            if others:
                errors.append(abs(statistics.median(others) / speed - 1))
        self.error = statistics.median(errors) if errors else math.nan

    @staticmethod
    def _ratio(runs: Sequence[Measured], seconds: str) -> float:
        ratios = [
            getattr(run, seconds) / run.train_seconds_per_sample
            for run in runs
            if math.isfinite(getattr(run, seconds))
        ]
        return statistics.median(ratios) if ratios else VALIDATION_RATIO

    def estimate(self, config: RunConfig, cases: Mapping[str, int]) -> Estimate:
        """Cost of a run on data of `cases` (task -> labelled cases)."""
        data, optim = config.data, config.optim
        shape = shape_of(config, TASKS.get(data.task))
        known = self.train.get(shape)
        seconds = known or training_tflop(shape) * self.seconds_per_tflop
        train, validation, test = case_counts(cases[data.task], data.fraction)
        padded = math.ceil(train * data.patches_per_case / optim.batch_size) * optim.batch_size
        validated = math.ceil(optim.epochs / optim.validate_every) * validation
        total = float(optim.epochs * padded)
        total += validated * self.validation_ratio[data.resolution]
        total += test * self.test_ratio[data.resolution]
        return Estimate(total * seconds, known is not None)
