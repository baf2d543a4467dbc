"""Pictures for people: a test case's image, reference and prediction side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mvl_dist.evaluation import Prediction
from mvl_dist.placement import Schedule

COLOURS = ("#ff5a36", "#2ec4b6", "#ffd166", "#8ecae6", "#c77dff", "#90be6d")


def overlay(
    path: Path,
    predictions: Sequence[Prediction],
    images: Sequence[npt.NDArray[np.floating]],
    regions: Sequence[str],
    dice: Sequence[float],
    spacings_mm: Sequence[tuple[float, float, float]],
) -> None:
    """Draw one row a case: image, reference, prediction, in the slice with most reference.

    Args:
        images: (D, H, W) each, the first channel at any grid; the slice is taken at the same
            relative depth.
        dice: mean Dice over the regions of each case.
    """
    import matplotlib  # slow, and only rank 0 draws

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(predictions), 3, figsize=(7.5, 2.6 * len(predictions)), squeeze=False
    )
    for row, (prediction, image) in enumerate(zip(predictions, images, strict=True)):
        depth, height, width = prediction.reference.shape[1:]
        middle = int(prediction.reference.any(0).sum((1, 2)).argmax())
        plane = image[min(int((middle + 0.5) * image.shape[0] / depth), image.shape[0] - 1)]
        low, high = np.percentile(plane, (1, 99.5))
        _, row_mm, column_mm = spacings_mm[row]
        extent = (0.0, width * column_mm, 0.0, height * row_mm)
        for axis, masks in zip(
            axes[row], (None, prediction.reference, prediction.predicted), strict=True
        ):
            axis.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
            # The largest first: a union would hide the outlines of its parts.
            sizes = [int(mask.sum()) for mask in masks] if masks is not None else []
            for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
                shown = masks[index, middle]  # type: ignore[index]
                if shown.any():
                    axis.contour(
                        shown.astype(float),
                        levels=[0.5],
                        colors=[COLOURS[index % len(COLOURS)]],
                        linewidths=1.4,
                        origin="lower",
                        extent=extent,
                    )
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row][0].set_ylabel(prediction.case, fontsize=8)
        axes[row][2].set_xlabel(f"Dice {dice[row]:.2f}", fontsize=8)
    for axis, title in zip(axes[0], ("image", "reference", "prediction"), strict=True):
        axis.set_title(title, fontsize=10)
    handles = [
        plt.Line2D([], [], color=COLOURS[index % len(COLOURS)], label=name)
        for index, name in enumerate(regions)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(regions), 4), fontsize=8)
    figure.tight_layout(rect=(0, 0.03 + 0.02 / len(predictions), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def gantt(path: Path, schedule: Schedule, labels: Mapping[str, str]) -> None:
    """Draw a schedule: a row a GPU, a bar a run, a colour a model.

    Args:
        labels: job name -> what its bar is coloured by.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(labels[place.job.name] for place in schedule.placed))
    colours = {name: plt.colormaps["tab20"](index % 20) for index, name in enumerate(names)}
    rows = schedule.nodes * schedule.gpus_per_node
    figure, axes = plt.subplots(figsize=(11, min(2.5 + 0.16 * rows, 24)), layout="constrained")
    hours = 3600.0
    for place in schedule.placed:
        first = place.node * schedule.gpus_per_node
        for gpu in place.gpus:
            axes.barh(
                first + gpu,
                (place.end - place.start) / hours,
                left=place.start / hours,
                height=0.9,
                color=colours[labels[place.job.name]],
                edgecolor="white",
                linewidth=0.3,
            )
    for node in range(1, schedule.nodes):
        axes.axhline(node * schedule.gpus_per_node - 0.5, color="0.5", linewidth=0.6)
    axes.axvline(schedule.lower_bound / hours, color="0.2", linestyle="--", linewidth=0.8)
    axes.set(
        xlabel="hours (dashed: the lower bound)",
        ylabel=f"GPU ({schedule.gpus_per_node} a node)",
        ylim=(rows - 0.5, -0.5),
        title=f"{len(schedule.placed)} runs on {schedule.nodes} nodes: "
        f"{schedule.makespan / hours:.1f} h, GPUs {schedule.utilisation:.1%} busy",
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    axes.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
