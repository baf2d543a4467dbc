"""What the paper lacks: controls, regions, costs, calibration, failures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from mvl_dist.report.costs import (
    device_hours,
    devices,
    parameters,
    peak_memory,
    plain,
    training_tflop_per_run,
)
from mvl_dist.report.layout import Table, Value
from mvl_dist.report.results import MEAN_OF_REGIONS, Results, Slot
from mvl_dist.report.stats import MARKS, average_cell, cell, compared, marks_of
from mvl_dist.report.tables import PROPOSED, regions_said
from mvl_dist.statistics import Paired

PAPER_TABLES = ("Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 4", "Figure 5")
TITLES = {
    "weights": "Controls: is it the pre-trained weights, or any block?",
    "adapters": "Controls: adapters inside the block",
    "place": "Controls: the place of the block",
    "layers": "Controls: which layers, how many",
    "today": "Beside today's models",
}
FAILURES = 5


def all_extras(results: Results) -> list[Table]:
    """Tables that the paper has not, where there is something to show."""
    tables = [control_table(results, name) for name in results.tables() if name not in PAPER_TABLES]
    tables += [region_table(results), cost_table(results), calibration_table(results)]
    tables += [failure_table(results)]
    return [table for table in tables if table.rows]


def full_runs(results: Results) -> list[Slot]:
    """Slots of runs on all training cases."""
    return results.of(fraction=1.0)


def of_model(slots: Sequence[Slot], model: str) -> list[Slot]:
    """A model's slots, each run once."""
    found = {slot.asked.key: slot for slot in slots if slot.model == model}
    return list(found.values())


def control_table(results: Results, name: str) -> Table:
    """A table of a study that the paper has not: its models against MedVisionLlama."""
    slots = results.of(name)
    models = list(dict.fromkeys(slot.model for slot in slots))
    against = PROPOSED if PROPOSED in models else models[-1]
    family: dict[tuple[str, ...], Paired | None] = {
        (label, model): compared(results, of_model(slots, against), of_model(slots, model), metric)
        for label, metric in (("Dice", "dice"), ("NSD", "nsd"))
        for model in models
        if model != against
    }
    marks = marks_of(family)
    rows: list[tuple[Value, ...]] = []
    for model in models:
        chosen, pair = of_model(slots, model), family.get(("Dice", model))
        rows.append(
            (
                model,
                plain(parameters(chosen)[0], 3),
                *(
                    average_cell(results, chosen, metric, marks.get((label, model), ""))
                    for label, metric in (("Dice", "dice"), ("NSD", "nsd"))
                ),
                difference(pair) if model != against else "",
            )
        )
    return Table(
        f"controls_{name.replace(' ', '_')}",
        TITLES.get(name, f"Study table '{name}'"),
        ("Model", "Trainable (M)", "Dice", "NSD", f"Dice, median difference to {against}"),
        tuple(rows),
        regions_said(results, slots)
        + "Differences: over cases that both have, 95 % BCa interval for n ≥ 10; wins-losses count "
        + f"cases. {MARKS}",
    )


def difference(pair: Paired | None) -> str:
    """A comparison in words: median difference, interval, wins and losses."""
    if pair is None:
        return "–"
    interval = ""
    if pair.interval:
        interval = f" [{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]"
    return f"{pair.median_difference:+.3f}{interval}, {pair.wins}-{pair.losses}, n={pair.n}"


def region_table(results: Results) -> Table:
    """Dice, NSD and HD95 of every region that the runs have."""
    rows: list[tuple[Value, ...]] = []
    for task in results.tasks(present_only=True):
        slots = [slot for slot in full_runs(results) if slot.task == task]
        names = dict.fromkeys(row["region"] for row in results.rows(slots))
        for region in names:
            if region == MEAN_OF_REGIONS or len(names) == 1:
                continue
            for model in results.models():
                chosen = of_model(slots, model)
                if not any(slot.run for slot in chosen):
                    continue
                values = (cell(results, chosen, m, region) for m in ("dice", "nsd", "hd95_mm"))
                rows.append((task.partition("_")[0], str(region), model, *values))
    return Table(
        "regions",
        "Every region by itself",
        ("Task", "Region", "Model", "Dice", "NSD", "HD95 (mm)"),
        tuple(rows),
        "MSD's labels, and the unions that users ask for. Mean ± SD over cases, native grid.",
    )


def cost_table(results: Results) -> Table:
    """Device hours, TFLOP and memory beside Dice."""
    rows: list[tuple[Value, ...]] = []
    for model in results.models():
        slots = of_model(full_runs(results), model)
        done = [slot for slot in slots if slot.run]
        if not done:
            continue
        hours = [device_hours(results, slot) for slot in done]
        memory, of_what = peak_memory(results, done)
        rows.append(
            (
                model,
                average_cell(results, slots, "dice"),
                plain(statistics.fmean(hours), 3),
                plain(training_tflop_per_run(results, done), 1),
                plain(memory, 2),
                f"{devices(done)}; memory of {of_what}" if of_what else devices(done),
            )
        )
    return Table(
        "cost",
        "Cost against Dice",
        ("Model", "Dice", "Device hours/run", "TFLOP/run", "Peak memory (GiB)", "Measured on"),
        tuple(rows),
        "Device hours: training and validation of a finished run, summed over its ranks, without "
        "the time it lay interrupted. TFLOP: counted for its training steps. Memory: the largest "
        "of its ranks' peaks on the GPU; on a CPU, of the whole process, which trains one run "
        "after another.",
    )


# ----------------------------------------------------------------------------------- calibration


def calibration(results: Results, slots: Sequence[Slot], where: str) -> np.ndarray | None:
    """Reliability bins summed over runs and regions, (bins, 3); None where no run kept them."""
    total = None
    for slot in slots:
        showcase = results.source.showcase(slot.run) if slot.run else None
        for region in showcase.about["regions"] if showcase else ():
            bins = showcase.array("calibration", region, where)  # type: ignore[union-attr]
            if bins is not None:
                total = bins if total is None else total + bins
    return total


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: mean |confidence - frequency| weighted by voxels."""
    voxels, confidence, truth = bins.T
    return float(np.abs(confidence - truth).sum() / voxels.sum()) if voxels.sum() else math.nan


def calibration_table(results: Results) -> Table:
    """Expected calibration error of each model and task."""
    rows: list[tuple[Value, ...]] = []
    for task in results.tasks(present_only=True):
        for model in results.models():
            slots = [s for s in of_model(full_runs(results), model) if s.task == task and s.run]
            errors = []
            for where in ("box", "all"):
                bins = calibration(results, slots, where)
                error = math.nan if bins is None else 100 * calibration_error(bins)
                errors.append(plain(error, 2))
            if any(math.isfinite(error.mean) for error in errors):
                rows.append((task.partition("_")[0], model, *errors))
    return Table(
        "calibration",
        "Calibration: is a probability what it says?",
        ("Task", "Model", "ECE near the reference (%)", "ECE, all voxels (%)"),
        tuple(rows),
        "Expected calibration error in 15 equal bins over the test cases' voxels at the model's "
        "grid, all regions and finished runs together. 'Near': in each reference's bounding box "
        "enlarged by half its size on either side; elsewhere the easy background hides the rest.",
    )


# -------------------------------------------------------------------------------------- failures


def failure_table(results: Results) -> Table:
    """The cases that MedVisionLlama (or the first model) segments worst, and how others do."""
    tasks, rows = results.tasks(present_only=True), []
    models = [m for m in results.models() if any(s.run for s in of_model(full_runs(results), m))]
    models.sort(key=lambda model: model != PROPOSED)
    for task in tasks:
        slots = [slot for slot in full_runs(results) if slot.task == task]
        dice = {m: results.cases(of_model(slots, m)) for m in models}
        hd95 = results.cases(of_model(slots, models[0]), "hd95_mm")
        first = dice[models[0]]
        for case in sorted(first, key=lambda name: (first[name], name))[:FAILURES]:
            values = (plain(dice[model].get(case, math.nan), 3) for model in models)
            row: tuple[Value, ...] = (
                task.partition("_")[0],
                case,
                *values,
                plain(hd95.get(case, math.nan), 2),
            )
            rows.append(row)
    if not models:
        return Table("failures", "", (), ())
    return Table(
        "failures",
        f"Failures: the {FAILURES} cases of each task with the lowest Dice of {models[0]}",
        ("Task", "Case", *(f"Dice {m}" for m in models), f"HD95 {models[0]} (mm)"),
        tuple(rows),
        "Each value is the case's mean over folds and seeds. A case that every model fails points "
        "to the scan or its label; one that a single model fails, to the model.",
    )
