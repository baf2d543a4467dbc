"""The out-of-fold track: every case of a task scored by a model that has not seen it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mvl_dist.metrics import higher_is_better
from mvl_dist.report.extras import difference
from mvl_dist.report.layout import Table, Value
from mvl_dist.report.results import Results, Slot, headline
from mvl_dist.report.source import VALIDATION_ROWS
from mvl_dist.report.stats import MARKS, Cell, counted, marks_of, shared, spread
from mvl_dist.report.tables import BASELINE
from mvl_dist.statistics import Paired, compare, out_of_fold, per_case

METRICS = {"Dice": "dice", "NSD": "nsd"}
COMMAND = "'mvl evaluate RUN ... --split validation' of each fold's run"


def out_of_fold_table(results: Results) -> tuple[Table, list[str]]:
    """Each model and task over the validation cases of all folds, against the baseline.

    Returns:
        The table, without rows where no run was scored on its validation cases, and then a note
        on the command that does it.

    Raises:
        UserError: folds of different splits.
    """
    found: dict[tuple[str, str], list[Slot]] = {}
    for task in results.tasks(present_only=True):
        for model in results.models():
            slots = results.of(model=model, task=task)
            if results.validation_rows(slots):
                found[task, model] = _once(slots)
    if not found:
        return Table("out_of_fold", "", (), ()), [
            f"Out-of-fold track: left out, no run has {VALIDATION_ROWS} in MLflow; {COMMAND} "
            "puts it there"
        ]
    models = list(dict.fromkeys(model for _, model in found))
    against = BASELINE if BASELINE in models else models[0]
    family: dict[tuple[str, ...], Paired | None] = {
        (label, task, model): _compared(results, found[task, against], slots, metric)
        for label, metric in METRICS.items()
        for (task, model), slots in found.items()
        if model != against and (task, against) in found
    }
    marks = marks_of(family)
    rows: list[tuple[Value, ...]] = []
    for (task, model), slots in found.items():
        cells = (
            _cell(results, slots, metric, marks.get((label, task, model), ""))
            for label, metric in METRICS.items()
        )
        pairs = (
            difference(family.get((label, task, model))) if model != against else ""
            for label in METRICS
        )
        rows.append((task.partition("_")[0], model, *cells, *pairs))
    missing = sum(counted(slots)[1] - _scored(results, slots) for slots in found.values())
    notes = [f"Out-of-fold track: {missing} runs are not in it yet; {COMMAND} adds them"]
    return Table(
        "out_of_fold",
        "Every case, scored out of fold",
        ("Task", "Model", *METRICS, *(f"{m}, median difference to {against}" for m in METRICS)),
        tuple(rows),
        "Each fold's model on its own validation cases, all folds together. These cases chose each "
        "run's epoch, so that values may be a little too high, of all models alike; the test "
        "cases of the other tables are free of that. Mean ± SD over cases, each averaged over "
        "seeds first; "
        f"region: {_regions(results, found)}. Differences: over cases that both have, 95 % BCa "
        f"interval for n ≥ 10; wins-losses count cases. {MARKS}",
    ), notes if missing else []


def _once(slots: Sequence[Slot]) -> list[Slot]:
    """Slots, each run once."""
    return list({slot.asked.key: slot for slot in slots}.values())


def _scored(results: Results, slots: Sequence[Slot]) -> int:
    return sum(bool(results.validation_rows([slot])) for slot in slots)


def _cases(results: Results, slots: Sequence[Slot], metric: str) -> dict[str, float]:
    rows = out_of_fold(results.validation_rows(slots))
    return per_case(rows, metric, headline(rows)) if rows else {}


def _compared(
    results: Results, first: Sequence[Slot], second: Sequence[Slot], metric: str
) -> Paired | None:
    """Second against first on the folds and seeds of which both are scored."""
    pair = ([s for s in slots if results.validation_rows([s])] for slots in (first, second))
    one, other = (_cases(results, slots, metric) for slots in shared(*pair))
    if not one.keys() & other.keys():
        return None
    return compare(one, other, higher_is_better(metric))


def _cell(results: Results, slots: Sequence[Slot], metric: str, marks: str) -> Cell:
    values = list(_cases(results, slots, metric).values())
    return Cell(
        statistics.fmean(values) if values else math.nan,
        spread(values),
        len(values),
        _scored(results, slots),
        counted(slots)[1],
        marks,
    )


def _regions(results: Results, found: dict[tuple[str, str], list[Slot]]) -> str:
    names = dict.fromkeys(headline(results.validation_rows(slots)) for slots in found.values())
    return " or ".join(names)
