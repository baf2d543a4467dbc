"""Figures 2 and 3: cases as pictures, chosen by rule, and activation maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mvl_dist.figures import COLOURS
from mvl_dist.report.drawing import Figure, finished, pyplot
from mvl_dist.report.extras import FAILURES, full_runs, of_model
from mvl_dist.report.results import Results, Slot
from mvl_dist.report.tables import BASELINE, PROPOSED
from mvl_dist.showcase import STAGES, Showcase, chosen_by_rule, rank_cases

Array = npt.NDArray[Any]
MOST_COLUMNS = 6  # models side by side: more could not be read
RULE = (
    "Rule: cases of a task are ordered by Dice averaged over the models shown and their finished "
    "runs; best, median (the lower one of an even number) and worst are taken. A picture is of the "
    "first finished fold, in the slice with most reference."
)


def all_pictures(results: Results) -> list[Figure]:
    """Figures 2 and 3 and the failures, for every task that has them."""
    figures = []
    for task in results.tasks(present_only=True):
        figures += [
            figure
            for figure in (figure2(results, task), figure3(results, task), failures(results, task))
            if figure is not None
        ]
    return figures


def shown_models(results: Results) -> list[str]:
    """What is put side by side: the two models of Table 2, else every model."""
    table = [model for model in (BASELINE, PROPOSED) if results.of(model=model)]
    return table if len(table) == 2 else results.models()


def first_runs(results: Results, task: str, models: Sequence[str]) -> dict[str, Slot]:
    """A model's finished run of the lowest fold and seed that kept a showcase."""
    found = {}
    for model in models:
        slots = [s for s in of_model(full_runs(results), model) if s.task == task and s.run]
        slots.sort(key=lambda s: (s.asked.config.data.fold, s.asked.config.optim.seed))
        for slot in slots:
            if slot.run and results.source.showcase(slot.run):
                found[model] = slot
                break
    return found


def mean_dice(results: Results, task: str, models: Sequence[str]) -> dict[str, float]:
    """Dice of the cases that every model has, averaged over the models."""
    slots = [slot for slot in full_runs(results) if slot.task == task]
    by_model = [results.cases(of_model(slots, model)) for model in models]
    by_model = [dice for dice in by_model if dice]
    common = set.intersection(*map(set, by_model)) if by_model else set()
    return {case: float(np.mean([dice[case] for dice in by_model])) for case in sorted(common)}


def figure2(results: Results, task: str) -> Figure | None:
    """Image, reference and predictions of the best, the median and the worst case."""
    models = shown_models(results)
    dice = mean_dice(results, task, models)
    if not dice:
        return None
    rule = chosen_by_rule(dice)
    rows = [(f"{which}: {rule[which]}", rule[which]) for which in ("best", "median", "worst")]
    number = task.partition("_")[0]
    return case_grid(
        results,
        task,
        models,
        rows,
        f"figure2_{number}",
        f"Figure 2. {task}: best, median and worst case",
        RULE,
    )


def failures(results: Results, task: str) -> Figure | None:
    """The cases with the lowest Dice of MedVisionLlama, as every model segments them."""
    pair = shown_models(results)
    order = [*pair, *(model for model in results.models() if model not in pair)]
    models = list(first_runs(results, task, order))[:MOST_COLUMNS]
    if not models:
        return None
    judged = PROPOSED if PROPOSED in models else models[0]
    slots = [slot for slot in full_runs(results) if slot.task == task]
    worst = rank_cases(results.cases(of_model(slots, judged)))[: min(3, FAILURES)]
    number = task.partition("_")[0]
    return case_grid(
        results,
        task,
        models,
        [(case, case) for case in worst],
        f"failures_{number}",
        f"Failures. {task}: the lowest Dice of {judged}",
        f"Predictions of up to {MOST_COLUMNS} models in the slice with most reference; Dice is of "
        "the whole case and of the first finished fold.",
    )


def case_grid(
    results: Results,
    task: str,
    models: Sequence[str],
    cases: Sequence[tuple[str, str]],
    name: str,
    title: str,
    caption: str,
) -> Figure | None:
    """A row a case: image, reference, a column a model."""
    runs = first_runs(results, task, models)
    showcases = {
        model: showcase
        for model, slot in runs.items()
        if slot.run and (showcase := results.source.showcase(slot.run))
    }
    kept = [
        (label, case)
        for label, case in cases
        if any(
            case in s.about["cases"] and s.array(case, "plane") is not None
            for s in showcases.values()
        )
    ]
    if not kept:
        return None
    plt = pyplot()
    columns = 2 + len(showcases)
    drawing, axes = plt.subplots(
        len(kept),
        columns,
        figsize=(2.1 * columns, 2.35 * len(kept) + 0.45),
        squeeze=False,
        layout="constrained",
    )
    for row, (label, case) in enumerate(kept):
        first = next(s for s in showcases.values() if case in s.about["cases"])
        _picture(axes[row][0], first, case, None)
        _picture(axes[row][1], first, case, "reference")
        axes[row][0].set_ylabel(label, fontsize=8)
        for column, (model, showcase) in enumerate(showcases.items(), start=2):
            axis = axes[row][column]
            if case in showcase.about["cases"]:
                _picture(axis, showcase, case, "predicted")
                dice = results.cases([runs[model]]).get(case, float("nan"))
                axis.set_xlabel(f"Dice {dice:.2f}", fontsize=8)
            else:
                axis.set_axis_off()
    for axis, head in zip(axes[0], ("image", "reference", *showcases), strict=True):
        axis.set_title(head, fontsize=9)
    regions = next(iter(showcases.values())).about["regions"]
    handles = [
        plt.Line2D([], [], color=COLOURS[index % len(COLOURS)], label=region)
        for index, region in enumerate(regions)
    ]
    drawing.legend(handles=handles, loc="outside lower center", ncols=min(len(regions), 5))
    return finished(drawing, name, title, caption, vector=False)


def _picture(axis: Any, showcase: Showcase, case: str, which: str | None) -> None:
    """A slice of the image with the outlines of its regions."""
    about: Mapping[str, Any] = showcase.about["cases"][case]
    _, height, width = about["native_shape"]
    _, row_mm, column_mm = about["spacing_mm"]
    extent = (0.0, width * column_mm, 0.0, height * row_mm)
    axis.set_xticks([])
    axis.set_yticks([])
    plane = showcase.array(case, "plane")
    if plane is not None:
        axis.imshow(plane, cmap="gray", vmin=0, vmax=255, origin="lower", extent=extent)
    for spine in axis.spines.values():
        spine.set_visible(False)
    masks = showcase.masks(case, which) if which else None
    if masks is None:
        return
    # The largest first: a union would hide the outlines of its parts.
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        shown = masks[index, about["depth"]]
        if shown.any():
            axis.contour(
                shown.astype(float),
                levels=[0.5],
                colors=[COLOURS[index % len(COLOURS)]],
                linewidths=1.3,
                origin="lower",
                extent=extent,
            )


# ------------------------------------------------------------------------------------- Figure 3


def figure3(results: Results, task: str) -> Figure | None:
    """Activation maps of both models on the same image."""
    runs = first_runs(results, task, shown_models(results))
    kept = {}
    for model, slot in runs.items():
        showcase = results.source.showcase(slot.run) if slot.run else None
        if showcase and showcase.about["activation"]:
            kept[model] = showcase
    cases = {showcase.about["activation"]["case"] for showcase in kept.values()}
    if not kept or len(cases) != 1:
        return None
    (case,) = cases
    plt = pyplot()
    columns = ("X", *STAGES)
    drawing, axes = plt.subplots(
        len(kept),
        len(columns),
        figsize=(1.55 * len(columns), 1.75 * len(kept) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for row, (model, showcase) in enumerate(kept.items()):
        axes[row][0].set_ylabel(model, fontsize=8)
        reference = showcase.array("activation", "reference")
        for column, stage in enumerate(columns):
            _map(axes[row][column], stage, showcase.array("activation", stage), reference)
    for axis, stage in zip(axes[0], columns, strict=True):
        axis.set_title(stage, fontsize=9)
    return finished(
        drawing,
        f"figure3_{task.partition('_')[0]}",
        f"Figure 3. {task}: activation maps",
        f"Case {case}, the test case with the largest reference, in the slice with most of it "
        "(outlined in X). Taken by hooks from the trained weights: root mean square of the tokens "
        "over channels, each map scaled to its own range; attention: of the last ViT block, from "
        "the tokens inside the prediction, the mean over heads; Y: the first region's probability. "
        "ViT-Baseline has no V_D1 and V_D2. The paper's code draws its maps through projections "
        "that were never trained.",
        vector=False,
    )


def _map(axis: Any, stage: str, values: Array | None, reference: Array | None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if values is None:
        axis.set_box_aspect(1)  # as wide as the pictures beside it
        axis.text(0.5, 0.5, "–", ha="center", va="center", transform=axis.transAxes)
        return
    shown = values.astype(np.float32)
    if stage == "Y":
        axis.imshow(1 / (1 + np.exp(-shown)), cmap="magma", vmin=0, vmax=1, origin="lower")
    elif stage == "X":
        low, high = np.percentile(shown, (1, 99))
        axis.imshow(shown, cmap="gray", vmin=low, vmax=high, origin="lower")
        if reference is not None and reference.any():
            axis.contour(reference.astype(float), levels=[0.5], colors=["#ff5a36"], linewidths=1)
    else:
        axis.imshow(shown, cmap="viridis", origin="lower", interpolation="nearest")
