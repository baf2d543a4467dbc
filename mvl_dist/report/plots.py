"""Figures 4 and 5, and the charts of what the paper lacks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from mvl_dist.report.claim import QUESTIONS, Effect
from mvl_dist.report.costs import device_hours
from mvl_dist.report.drawing import COLOURS, Figure, finished, pyplot
from mvl_dist.report.extras import calibration, full_runs, of_model
from mvl_dist.report.results import Results, Slot
from mvl_dist.report.stats import spread
from mvl_dist.report.tables import BASELINE, PROPOSED

FEW_SHOT_COLOURS = {0.1: "#1f6fb4", 0.3: "#2f9e44"}  # as in the paper: blue and green
Curve = dict[int, float]


def all_plots(results: Results, effects: Sequence[Effect]) -> list[Figure]:
    """The charts that there is something to draw for."""
    plots = [
        forest(effects),
        few_shot(results),
        boxes(results),
        cost_against_dice(results),
        reliability(results),
    ]
    return [plot for plot in plots if plot is not None]


# ------------------------------------------------------------------------------------- Figure 4


def few_shot(results: Results) -> Figure | None:
    """Validation Dice and loss by epoch for each fraction, the mean over tasks with a band."""
    fractions = sorted(
        {s.asked.config.data.fraction for s in results.of("Figure 4", fraction=None) if s.run}
    )
    if not fractions:
        return None
    plt = pyplot()
    drawing, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    bands = set()
    for fraction in fractions:
        colour = FEW_SHOT_COLOURS.get(fraction, COLOURS[4])
        for model, style in ((PROPOSED, "-"), (BASELINE, ":")):
            slots = [s for s in results.of("Figure 4", model, fraction=fraction) if s.run]
            for axis, metric in zip(axes, ("val_dice", "val_loss"), strict=True):
                epochs, mean, sd, unit = averaged(results, slots, metric)
                if not epochs:
                    continue
                bands.add(unit)
                label = f"{model}, {fraction:.0%}"
                axis.plot(epochs, mean, style, color=colour, label=label, linewidth=1.8)
                low, high = np.subtract(mean, sd), np.add(mean, sd)
                axis.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
    for axis, name in zip(axes, ("validation Dice", "validation loss"), strict=True):
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return finished(
        drawing,
        "figure4",
        "Figure 4. Few-shot training",
        "Validation Dice (at the model's grid, mean over regions) and loss by epoch. Curves of a "
        f"task are averaged over folds first; the band is ± SD over {' or '.join(sorted(bands))}.",
    )


def averaged(
    results: Results, slots: Sequence[Slot], metric: str
) -> tuple[list[int], list[float], list[float], str]:
    """A validation curve by epoch: mean and SD over tasks, over folds where there is one task."""
    by_task: dict[str, list[Curve]] = {}
    for slot in slots:
        by_task.setdefault(slot.task, []).append(by_epoch(results, slot, metric))
    if len(by_task) == 1:
        curves, unit = next(iter(by_task.values())), "folds and seeds"
    else:
        curves, unit = [_mean(of_task) for of_task in by_task.values()], "tasks"
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = [[c[epoch] for c in curves if epoch in c] for epoch in epochs]
    sds = [spread(v) if len(v) > 1 else 0.0 for v in values]
    return epochs, [statistics.fmean(v) for v in values], sds, unit


def by_epoch(results: Results, slot: Slot, metric: str) -> Curve:
    """A run's metric by epoch."""
    if slot.run is None:
        return {}
    values = results.source.curve(slot.run, metric)
    epochs = results.source.curve(slot.run, "epoch")
    return {int(epochs[step]): value for step, value in values.items() if step in epochs}


def _mean(curves: Sequence[Curve]) -> Curve:
    epochs = sorted({epoch for curve in curves for epoch in curve})
    return {e: statistics.fmean(c[e] for c in curves if e in c) for e in epochs}


# ------------------------------------------------------------------------------------- Figure 5


def boxes(results: Results) -> Figure | None:
    """Box plot of Dice: the donors of Figure 5's table, else all models of the studies."""
    donors = "Figure 5" in results.tables()
    slots = results.of("Figure 5") if donors else full_runs(results)
    values: dict[str, list[float]] = {}
    for model in dict.fromkeys(slot.model for slot in slots):
        of_one = of_model(slots, model)
        for task in sorted({slot.task for slot in of_one}):
            found = results.cases([slot for slot in of_one if slot.task == task])
            if found:
                values.setdefault(model, []).extend(found.values())
    if not values:
        return None
    plt = pyplot()
    drawing, axis = plt.subplots(figsize=(8.5, 0.8 + 0.55 * len(values)), layout="constrained")
    parts = axis.boxplot(
        list(values.values()), orientation="horizontal", widths=0.55, patch_artist=True, sym=""
    )
    generator = np.random.default_rng(0)
    for index, (box, dice) in enumerate(zip(parts["boxes"], values.values(), strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        box.set(facecolor=colour, alpha=0.35, edgecolor=colour)
        parts["medians"][index].set(color=colour, linewidth=2)
        heights = index + 1 + generator.uniform(-0.18, 0.18, len(dice))
        axis.plot(dice, heights, ".", color=colour, markersize=4, alpha=0.7)
    names = [f"{model} (n={len(dice)})" for model, dice in values.items()]
    axis.set_yticks(range(1, len(values) + 1), names)
    axis.invert_yaxis()
    axis.set_xlabel("Dice of a case, averaged over folds and seeds")
    axis.grid(axis="x", alpha=0.25)
    title = "Figure 5. Donors" if donors else "Figure 5. Dice of every model"
    other = "" if donors else " The studies hold no table of donors: all their models are shown."
    return finished(
        drawing,
        "figure5",
        title,
        "A point a case, of all tasks; box: quartiles, whiskers: 1.5 times their distance." + other,
    )


# ----------------------------------------------------------------------------- beyond the paper


def forest(effects: Sequence[Effect]) -> Figure | None:
    """Effects with their intervals, grouped by question."""
    shown = [effect for effect in effects if effect.pair]
    if not shown:
        return None
    plt = pyplot()
    groups = [q for q in QUESTIONS if any(effect.question == q for effect in shown)]
    rows = len(shown) + len(groups)
    drawing, axis = plt.subplots(figsize=(9, 1.0 + 0.34 * rows), layout="constrained")
    place, ticks = 0, []
    for group in groups:
        ticks.append((place, f"{group.text[0].upper()}{group.text[1:]}"))
        place += 1
        for effect in (e for e in shown if e.question == group):
            pair = effect.pair
            if pair is None:
                continue
            colour = {"better": "#2b8a3e", "worse": "#c92a2a"}.get(effect.says, "#495057")
            marker = "D" if not effect.task else "o"
            if pair.interval:
                axis.plot(pair.interval, (place, place), color=colour, linewidth=2)
            axis.plot(pair.median_difference, place, marker, color=colour, markersize=6)
            said = effect.says if effect.task else "all tasks"
            text = f"  {pair.median_difference:+.3f}, n={pair.n}, {said}"
            axis.annotate(
                text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
            ticks.append((place, effect.task or "all tasks (unit: a task)"))
            place += 1
    axis.axvline(0, color="0.3", linewidth=0.9)
    axis.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    for (_, name), label in zip(ticks, axis.get_yticklabels(), strict=True):
        if not name.startswith(("Task", "all tasks")):
            label.set_fontweight("bold")
    axis.tick_params(axis="y", length=0)
    widest = max(
        abs(bound)
        for e in shown
        if e.pair
        for bound in (e.pair.interval or (e.pair.median_difference,))
    )
    axis.set_xlim(-1.15 * max(widest, 0.01), 1.15 * max(widest, 0.01))
    axis.set_ylim(place - 0.4, -0.6)
    axis.set_xlabel("median difference in Dice: left, the first is better; right, the second")
    axis.grid(axis="x", alpha=0.25)
    axis.spines["left"].set_visible(False)
    return finished(
        drawing,
        "forest",
        "Effects on Dice",
        "Median paired difference over cases with its 95 % BCa interval (none for n < 10). Green "
        "and red: better and worse by the rule above.",
    )


def cost_against_dice(results: Results) -> Figure | None:
    """Mean Dice of each model over the device hours that a run of it took."""
    points = []
    for model in results.models():
        slots = [slot for slot in of_model(full_runs(results), model) if slot.run]
        hours = [h for h in (device_hours(results, slot) for slot in slots) if math.isfinite(h)]
        means = [
            statistics.fmean(found.values())
            for task in sorted({slot.task for slot in slots})
            if (found := results.cases([slot for slot in slots if slot.task == task]))
        ]
        if hours and means:
            points.append((model, statistics.fmean(hours), statistics.fmean(means)))
    if not points:
        return None
    plt = pyplot()
    from matplotlib.ticker import LogLocator, NullFormatter

    drawing, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for index, (model, hour, dice) in enumerate(points):
        axis.plot(hour, dice, "o", color=COLOURS[index % len(COLOURS)], markersize=9, label=model)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="device hours of a run (training and validation)", ylabel="mean Dice")
    axis.margins(0.15)
    axis.grid(alpha=0.25, which="both")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return finished(
        drawing,
        "cost",
        "Cost against Dice",
        "Upper left is better. Runs on different devices are not comparable; the table names them.",
    )


def reliability(results: Results) -> Figure | None:
    """Reliability diagram of every model, near the reference."""
    lines = []
    for model in results.models():
        slots = [slot for slot in of_model(full_runs(results), model) if slot.run]
        bins = calibration(results, slots, "box")
        if bins is not None and bins.sum():
            lines.append((model, bins[bins[:, 0] > 0]))
    if not lines:
        return None
    plt = pyplot()
    drawing, axis = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
    axis.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--")
    for index, (model, bins) in enumerate(lines):
        voxels, confidence, truth = bins.T
        axis.plot(
            confidence / voxels,
            truth / voxels,
            "o-",
            color=COLOURS[index % len(COLOURS)],
            label=model,
            markersize=4,
        )
    axis.set(xlabel="predicted probability", ylabel="share of voxels that are foreground")
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    axis.grid(alpha=0.25)
    return finished(
        drawing,
        "calibration",
        "Calibration",
        "All tasks, regions and finished runs of a model; voxels near the reference. Below the "
        "diagonal: too sure.",
    )
