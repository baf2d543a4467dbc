"""Tables 2 to 6 in the paper's shape, its numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvl_dist.report import paper
from mvl_dist.report.costs import COSTS, gflop, milliseconds, parameters, plain
from mvl_dist.report.layout import Table, Value
from mvl_dist.report.paper import TASK_NUMBERS
from mvl_dist.report.results import Results, Slot, headline
from mvl_dist.report.stats import (
    MARKS,
    TASKS_AS_UNITS,
    average_cell,
    cell,
    compared,
    marks_of,
)
from mvl_dist.statistics import Paired
from mvl_dist.tasks import TASKS

BASELINE, PROPOSED = "ViT-Baseline", "MedVisionLlama"
METRICS = {
    "Dice": "dice",
    "Jaccard": "jaccard",
    "NSD": "nsd",
    "HD95": "hd95_mm",
    "Specificity": "specificity",
    "Sensitivity": "sensitivity",
}
# Beside the paper's six: what it leaves out, and Dice on the model's grid, which is what it scored.
FURTHER = {"HD100": "hd100_mm", "Dice, model's grid": "dice_grid"}
EMPTY_MASKS = (
    "Both masks empty: Dice, Jaccard, NSD 1, HD 0 mm; one empty: 0 and the image's diagonal; "
    "sensitivity and specificity are undefined without a voxel to count, and left out."
)
HOW = (
    "Mean ± SD over held-out cases, each averaged over folds and seeds first; native grid, HD in "
    "mm, NSD at MSD's tolerance. "
)


def all_tables(results: Results) -> list[Table]:
    """The paper's tables that the studies ask for."""
    builders: dict[str, Callable[[Results], Table]] = {
        "Table 2": table2,
        "Table 3": table3,
        "Table 4": table4,
        "Table 5": table5,
        "Table 6": table6,
    }
    return [build(results) for name, build in builders.items() if name in results.tables()]


def regions_said(results: Results, slots: Sequence[Slot]) -> str:
    """Which region the numbers of slots are of."""
    rows = results.rows(slots)
    by_task = {
        task: headline([row for row in rows if row["task"] == task])
        for task in sorted({str(row["task"]) for row in rows})
    }
    if len(set(by_task.values())) == 1:
        return f"Region: {next(iter(by_task.values()))}. "
    return "Regions: " + "; ".join(f"{t.partition('_')[0]} {r}" for t, r in by_task.items()) + ". "


def task_columns(results: Results) -> list[str]:
    """The ten tasks, as far as the studies have them; then tasks that are none of the ten."""
    tasks = results.tasks()
    numbered = {task.partition("_")[0]: task for task in tasks if task in TASKS}
    ten = [numbered.get(number, number) for number in TASK_NUMBERS]
    return [*ten, *(task for task in tasks if task not in TASKS)]


def table2(results: Results) -> Table:
    """ViT-Baseline and MedVisionLlama, six metrics, a column a task."""
    slots, tasks = results.of("Table 2"), task_columns(results)
    models = [BASELINE, PROPOSED]
    models += [model for model in results.models("Table 2") if model not in models]
    family: dict[tuple[str, ...], Paired | None] = {}
    for name, metric in METRICS.items():
        for task in tasks:
            for model in models[1:]:
                family[name, task, model] = compared(
                    results,
                    [s for s in slots if (s.model, s.task) == (BASELINE, task)],
                    [s for s in slots if (s.model, s.task) == (model, task)],
                    metric,
                )
    marks = marks_of(family)
    rows: list[tuple[Value, ...]] = []
    for name, metric in {**METRICS, **FURTHER}.items():
        for model in models:
            cells = [
                cell(
                    results,
                    [s for s in slots if (s.model, s.task) == (model, task)],
                    metric,
                    marks=marks.get((name, task, model), ""),
                    paper=paper.table2(name, model, task),
                )
                for task in tasks
            ]
            rows.append((name, model, *cells))
    return Table(
        "table2",
        "Table 2. ViT-Baseline and MedVisionLlama on every task",
        ("Metric", "Model", *(task.partition("_")[0] for task in tasks)),
        tuple(rows),
        HOW
        + regions_said(results, slots)
        + "Marks stand with MedVisionLlama, against ViT-Baseline, in either direction. "
        + f"{MARKS} {EMPTY_MASKS}",
    )


def _averages(
    results: Results, table: str, models: Sequence[str], names: Sequence[str], against: str
) -> dict[tuple[str, ...], str]:
    """Marks of models against one of them, on averages over tasks."""
    family: dict[tuple[str, ...], Paired | None] = {
        (name, model): compared(
            results, results.of(table, model), results.of(table, against), METRICS[name]
        )
        for name in names
        for model in models
        if model != against
    }
    return marks_of(family)


def _average_caption(results: Results, table: str, against: str) -> str:
    tasks = {slot.task for slot in results.of(table) if slot.run}
    unit = (
        "Marks compare the tasks' means."
        if len(tasks) >= TASKS_AS_UNITS
        else f"Results of {len(tasks)} task(s): marks compare cases."
    )
    over = "tasks' means ± SD over tasks" if len(tasks) > 1 else "± SD over cases"
    return (
        f"Average Dice and NSD: {over}; cases are averaged over folds and seeds first. "
        + regions_said(results, results.of(table))
        + f"{unit} Marks stand with each model, against {against}, in either direction. {MARKS}"
    )


def _known_models(results: Results, table: str, number: str) -> list[str]:
    """The paper's models of a table, then those that only the study has."""
    known = paper.models(number)
    return [*known, *(model for model in results.models(table) if model not in known)]


def table3(results: Results) -> Table:
    """All models, average Dice and NSD."""
    models = _known_models(results, "Table 3", "table3")
    marks = _averages(results, "Table 3", models, ("Dice", "NSD"), PROPOSED)
    rows: list[tuple[Value, ...]] = []
    for model in models:
        printed = paper.row("table3", model) or ["", ""]
        cells = [
            average_cell(
                results,
                results.of("Table 3", model),
                METRICS[name],
                marks.get((name, model), ""),
                printed[index],
            )
            for index, name in enumerate(("Dice", "NSD"))
        ]
        rows.append((model, *cells))
    return Table(
        "table3",
        "Table 3. Against other segmentation models",
        ("Model", "Average Dice", "Average NSD"),
        tuple(rows),
        _average_caption(results, "Table 3", PROPOSED),
    )


def table4(results: Results) -> Table:
    """Models of MedVisionLlama's size: parameters, GFLOP, time, Dice a task."""
    models, tasks = _known_models(results, "Table 4", "table4"), task_columns(results)
    rows: list[tuple[Value, ...]] = []
    for model in models:
        slots = results.of("Table 4", model)
        printed = paper.row("table4", model) or [""] * (3 + len(TASK_NUMBERS))
        dice = [
            cell(
                results,
                [s for s in slots if s.task == task],
                "dice",
                paper=dict(zip(TASK_NUMBERS, printed[3:], strict=True)).get(
                    task.partition("_")[0], ""
                ),
            )
            for task in tasks
        ]
        trained, frozen = parameters(slots)
        rows.append(
            (
                model,
                plain(trained + frozen, 2, printed[0]),
                plain(gflop(slots), 2, printed[1]),
                plain(milliseconds(results, slots), 2, printed[2]),
                *dice,
            )
        )
    return Table(
        "table4",
        "Table 4. Is it the weights or the size?",
        (
            *("Model", "Parameters (M)", "GFLOP/sample", "ms/sample"),
            *(task.partition("_")[0] for task in tasks),
        ),
        tuple(rows),
        "Dice: mean ± SD over cases. " + regions_said(results, results.of("Table 4")) + COSTS,
    )


def table5(results: Results) -> Table:
    """LoRA against linear mappers."""
    models = _known_models(results, "Table 5", "table5")
    marks = _averages(results, "Table 5", models, ("Dice",), PROPOSED)
    rows: list[tuple[Value, ...]] = []
    for model in models:
        slots = results.of("Table 5", model)
        printed = paper.row("table5", model) or [""] * 4
        trained, frozen = parameters(slots)
        rows.append(
            (
                model,
                plain(frozen, 3, printed[0]),
                plain(trained, 3, printed[1]),
                average_cell(results, slots, "dice", marks.get(("Dice", model), ""), printed[2]),
                plain(milliseconds(results, slots), 2, printed[3]),
            )
        )
    return Table(
        "table5",
        "Table 5. LoRA or linear mappers",
        ("Model", "Non-trainable (M)", "Trainable (M)", "Average Dice", "ms/sample"),
        tuple(rows),
        f"{_average_caption(results, 'Table 5', PROPOSED)} {COSTS}",
    )


def table6(results: Results) -> Table:
    """LoRA ranks."""
    models = _known_models(results, "Table 6", "table6")
    against = "LoRA rank 8"
    marks = _averages(results, "Table 6", models, ("Dice", "NSD"), against)
    rows: list[tuple[Value, ...]] = []
    for model in models:
        slots = results.of("Table 6", model)
        printed = paper.row("table6", model) or [""] * 3
        cells = [
            average_cell(
                results, slots, METRICS[name], marks.get((name, model), ""), printed[1 + index]
            )
            for index, name in enumerate(("Dice", "NSD"))
        ]
        rows.append((model, plain(parameters(slots)[0], 3, printed[0]), *cells))
    return Table(
        "table6",
        "Table 6. LoRA rank",
        ("LoRA", "Trainable (M)", "Average Dice", "Average NSD"),
        tuple(rows),
        _average_caption(results, "Table 6", against),
    )
