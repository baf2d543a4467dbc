"""Cells of tables and comparisons of models: values over cases, runs present, marks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mvl_dist.metrics import higher_is_better
from mvl_dist.report.results import Results, Slot
from mvl_dist.statistics import LEVEL, Paired, compare, holm

WILCOXON_MARK, T_TEST_MARK = "*", "†"
MARKS = (
    f"{WILCOXON_MARK}: p < {LEVEL:g}, Wilcoxon signed-rank over cases, two-sided, Holm over the "
    f"table; {T_TEST_MARK}: p < {LEVEL:g} by the paper's own uncorrected paired t-test."
)
# From so many tasks on, averages over tasks are compared with the task as the unit.
TASKS_AS_UNITS = 5


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        n: cases that it is over (tasks, for averages over several tasks).
        runs: finished runs that it is from, of `expected`; None where no run stands behind it.
        paper: what the paper prints in this place.
        missing: what is shown where there is no mean.
    """

    mean: float = math.nan
    sd: float = math.nan
    n: int = 0
    runs: int | None = None
    expected: int | None = None
    marks: str = ""
    paper: str = ""
    digits: int = 3
    missing: str = "–"

    @property
    def text(self) -> str:
        """Mean ± SD with its marks."""
        if not math.isfinite(self.mean):
            return self.missing
        spread = f" ± {self.sd:.{self.digits}f}" if math.isfinite(self.sd) else ""
        return f"{self.mean:.{self.digits}f}{spread}{self.marks}"

    @property
    def basis(self) -> str:
        """Cases and runs behind it."""
        cases = [f"n={self.n}"] if self.n else []
        runs = [f"{self.runs}/{self.expected} runs"] if self.expected else []
        return ", ".join([*cases, *runs])


def counted(slots: Sequence[Slot]) -> tuple[int, int]:
    """Finished runs and asked-for runs behind slots, each run once."""
    asked = {slot.asked.key: slot.run for slot in slots}
    return sum(run is not None for run in asked.values()), len(asked)


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample, NaN for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def cell(
    results: Results,
    slots: Sequence[Slot],
    metric: str,
    region: str = "",
    marks: str = "",
    paper: str = "",
) -> Cell:
    """Mean ± SD over the cases of one task."""
    values = list(results.cases(slots, metric, region).values())
    runs, expected = counted(slots)
    return Cell(
        statistics.fmean(values) if values else math.nan,
        spread(values),
        len(values),
        runs,
        expected,
        marks,
        paper,
        2 if metric.startswith(("hd95", "hd100")) else 3,
    )


def shared(first: Sequence[Slot], second: Sequence[Slot]) -> tuple[list[Slot], list[Slot]]:
    """The finished slots of two models on the tasks, folds, seeds and fractions that both have.

    A part-finished study must not compare one model's five folds with another's first.
    """

    def place(slot: Slot) -> tuple[object, ...]:
        data = slot.asked.config.data
        return data.task, data.fold, data.fraction, slot.asked.config.optim.seed

    done = [[slot for slot in slots if slot.run] for slots in (first, second)]
    common = set(map(place, done[0])) & set(map(place, done[1]))
    one, other = ([slot for slot in slots if place(slot) in common] for slots in done)
    return one, other


def compared(
    results: Results, first: Sequence[Slot], second: Sequence[Slot], metric: str
) -> Paired | None:
    """Second against first on what both have finished, over `units`; None if that is nothing."""
    one, other = (units(results, slots, metric) for slots in shared(first, second))
    if not one.keys() & other.keys():
        return None
    return compare(one, other, higher_is_better(metric))


def units(results: Results, slots: Sequence[Slot], metric: str) -> dict[str, float]:
    """What models are compared by: cases; the tasks' means where there are five tasks or more."""
    by_task = {
        task: results.cases([slot for slot in slots if slot.task == task], metric)
        for task in sorted({slot.task for slot in slots})
    }
    by_task = {task: values for task, values in by_task.items() if values}
    if len(by_task) >= TASKS_AS_UNITS:
        return {task: statistics.fmean(values.values()) for task, values in by_task.items()}
    return {f"{t} {case}": value for t, values in by_task.items() for case, value in values.items()}


def average_cell(
    results: Results, slots: Sequence[Slot], metric: str, marks: str = "", paper: str = ""
) -> Cell:
    """Mean of the tasks' means ± SD over tasks; over cases where only one task has results."""
    tasks = sorted({slot.task for slot in slots if slot.run})
    runs, expected = counted(slots)
    if len(tasks) <= 1:
        return cell(results, slots, metric, marks=marks, paper=paper)
    means = [
        statistics.fmean(results.cases([s for s in slots if s.task == task], metric).values())
        for task in tasks
    ]
    return Cell(statistics.fmean(means), spread(means), len(means), runs, expected, marks, paper)


def marks_of(family: Mapping[tuple[str, ...], Paired | None]) -> dict[tuple[str, ...], str]:
    """Marks of each comparison of a declared family."""
    adjusted = holm({key: pair.wilcoxon_p if pair else None for key, pair in family.items()})
    marks = {}
    for key, pair in family.items():
        wilcoxon, t_test = adjusted[key], pair.t_test_p if pair else None
        marks[key] = WILCOXON_MARK * (wilcoxon is not None and wilcoxon < LEVEL) + T_TEST_MARK * (
            t_test is not None and t_test < LEVEL
        )
    return marks
