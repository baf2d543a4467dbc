"""Pictures for people: a test case's image, reference and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mvl_dist.evaluation import Prediction

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
            for index in range(len(regions) if masks is not None else 0):
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
