"""The models ranked as the Medical Segmentation Decathlon did, over all tasks and by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mvl_dist.ranking import Ranking, ranking
from mvl_dist.report.costs import plain
from mvl_dist.report.layout import Table, Value, words
from mvl_dist.report.results import FOREGROUND, MEAN_OF_REGIONS, Results, Slot
from mvl_dist.report.stats import Cell
from mvl_dist.statistics import per_case

METRICS = ("dice", "nsd")
Scores = dict[tuple[str, str, str], dict[str, Mapping[str, float]]]


def ranking_table(results: Results) -> tuple[Table, list[str]]:
    """The ranking by Dice and NSD of all models of the studies, and what was left out of it.

    A task counts with the folds and seeds that all of its models have finished. Over all tasks the
    ranks are of the labels alone, MSD's own way (of the foreground where models mark no labels).
    """
    notes: list[str] = []
    models = distinct_models(results)
    scores: Scores = {}
    for task in results.tasks(present_only=True):
        of_task, left_out = _scores(results, models, task)
        scores |= of_task
        notes += left_out
    everyone = {model for of_model in scores.values() for model in of_model}
    whole = {
        place: of_model
        for place, of_model in scores.items()
        if of_model.keys() == everyone and place[1] in _ranked_by_msd(scores, place[0])
    }
    rows: list[tuple[Value, ...]] = []
    if whole:
        tasks = [task.partition("_")[0] for task in dict.fromkeys(task for task, _, _ in whole)]
        labels = any(region != FOREGROUND for _, region, _ in whole)
        what = "All labels" if labels else "Foreground"
        rows += _rows(f"{what} of {words(tasks)}", ranking(whole))
    elif scores:
        notes.append("Ranking over all tasks: left out, no task has results of every model")
    for task, region in dict.fromkeys((task, region) for task, region, _ in scores):
        place = {key: value for key, value in scores.items() if key[:2] == (task, region)}
        rows += _rows(f"{task.partition('_')[0]} {region}", ranking(place))
    return Table(
        "ranking",
        "Ranking, as the Medical Segmentation Decathlon's",
        (
            *("Over", "Model", "Mean rank", "95 % of bootstrap ranks", "First in (%)"),
            *("Models beaten", "Kendall's τ", "n"),
        ),
        tuple(rows),
        "By Dice and NSD: a model beats another where a one-sided Wilcoxon signed-rank test over "
        "cases says so (p < 0.05, uncorrected, as MSD's); ranks by models beaten, ties share "
        "theirs, averaged over both metrics, regions, then tasks. Stability: 1000 bootstrap "
        "samples of the cases; τ is the mean rank correlation of their orders with this one. "
        "Cases are averaged over the folds and seeds that all models have; fewer than five cases "
        "rank nobody.",
    ), notes


def distinct_models(results: Results) -> list[str]:
    """Models with finished runs on all training cases; runs of two names count by the first."""
    found: dict[frozenset[str], str] = {}
    for model in results.models():
        keys = frozenset(slot.asked.key for slot in results.of(model=model) if slot.run)
        if keys:
            found.setdefault(keys, model)
    return list(found.values())


def _scores(results: Results, models: Sequence[str], task: str) -> tuple[Scores, list[str]]:
    """Per-case values of a task's models, for each region and metric that all of them have."""
    slots = {
        model: [slot for slot in results.of(model=model, task=task) if slot.run] for model in models
    }
    slots = {model: of_model for model, of_model in slots.items() if of_model}
    if len(slots) < 2:
        return {}, []
    common = set.intersection(*({_place(slot) for slot in found} for found in slots.values()))
    if not common:
        names = words(list(slots))
        return {}, [f"Ranking: {task} is left out, no fold and seed is finished of all of {names}"]
    rows = {
        model: results.rows([slot for slot in found if _place(slot) in common])
        for model, found in slots.items()
    }
    regions = [
        region
        for region in dict.fromkeys(row["region"] for of_model in rows.values() for row in of_model)
        if all(_scored(of_model, region) for of_model in rows.values())
    ]
    return {
        (task, region, metric): {
            model: per_case(of_model, metric, region) for model, of_model in rows.items()
        }
        for region in regions
        for metric in METRICS
    }, []


def _place(slot: Slot) -> tuple[int, int]:
    return slot.asked.config.data.fold, slot.asked.config.optim.seed


def _scored(rows: Sequence[Mapping[str, Any]], region: str) -> bool:
    """Whether rows have a region that is ranked: a label, the foreground; unions are neither."""
    return region != MEAN_OF_REGIONS and any(
        row["region"] == region and row.get("kind", "label") != "union" for row in rows
    )


def _ranked_by_msd(scores: Scores, task: str) -> set[str]:
    """A task's labels; the foreground where there is nothing else."""
    regions = {region for of_task, region, _ in scores if of_task == task}
    return regions - {FOREGROUND} or regions


def _rows(over: str, found: Ranking) -> list[tuple[Value, ...]]:
    cases = ", ".join(map(str, found.cases.values()))
    rows: list[tuple[Value, ...]] = []
    for place, model in enumerate(found.models):
        low, high = model.interval
        rows.append(
            (
                over,
                model.model,
                plain(model.mean_rank, 2),
                f"{low:.2f} to {high:.2f}",
                plain(100 * model.first, 0),
                plain(model.beats, 2),
                # Of the order, not of a model.
                plain(found.kendall_tau, 2) if place == 0 else Cell(missing=""),
                cases if place == 0 else "",
            )
        )
    return rows
