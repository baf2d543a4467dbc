"""Test-set metrics in each case's own geometry: pure functions on a model and a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mvl_dist.data import load_image, region_masks
from mvl_dist.losses import region_dice, region_logits
from mvl_dist.metrics import Summary, case_metrics, summarise
from mvl_dist.plan import Plan
from mvl_dist.store import read_array

METRICS = ("dice", "jaccard", "nsd", "hd95_mm", "hd100_mm", "sensitivity", "specificity")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prediction:
    """A case with its masks at native geometry, (R, D0, H0, W0) each."""

    case: str
    predicted: Mask
    reference: Mask


@torch.no_grad()
def predict_case(model: torch.nn.Module, plan: Plan, case: str) -> tuple[Prediction, torch.Tensor]:
    """Predict one case and bring its logits back to the scan's own grid.

    Logits are interpolated (trilinear) before the threshold, so that the mask is as smooth as the
    scan's grid allows. The reference is the untouched label.

    Returns:
        The masks, and Dice at the store's grid (R,), the figure the paper reports.
    """
    data, task = plan.config.data, plan.manifest.task.name
    weight = next(model.parameters())
    image = load_image(data.store, task, case, data.channels)
    logits = model(image[None].to(weight.device, weight.dtype)).float()
    label = torch.from_numpy(read_array(data.store, task, case, "label"))
    activation = plan.config.model.activation
    target = region_masks(label, plan.regions)[None].to(logits.device)
    grid_dice = region_dice(region_logits(logits, activation), target)[0]
    native = torch.from_numpy(read_array(data.store, task, case, "label_native"))
    logits = F.interpolate(logits, size=native.shape, mode="trilinear", align_corners=False)
    logits = region_logits(logits, activation)
    return (
        Prediction(
            case,
            (logits[0] > 0).cpu().numpy(),
            region_masks(native, plan.regions).bool().numpy(),
        ),
        grid_dice.cpu(),
    )


def evaluate_cases(
    model: torch.nn.Module, plan: Plan, cases: Iterable[str]
) -> tuple[list[dict[str, Any]], list[Prediction]]:
    """Metrics of each case and region, and the predictions they are of.

    A row holds `task`, `case`, `region`, the metrics of `mvl_dist.metrics.case_metrics` on the
    native grid in millimetres, and `dice_grid`, Dice at the store's grid.
    """
    model.eval()
    rows, predictions = [], []
    task = plan.manifest.task
    for case in cases:
        prediction, grid_dice = predict_case(model, plan, case)
        spacing_mm = plan.manifest.cases[case].spacing_mm
        for index, region in enumerate(plan.regions):
            values = case_metrics(
                prediction.predicted[index],
                prediction.reference[index],
                spacing_mm,
                task.tolerance_mm,
            )
            rows.append(
                {
                    "task": task.name,
                    "case": case,
                    "region": region.name,
                    **values,
                    "dice_grid": float(grid_dice[index]),
                }
            )
        predictions.append(prediction)
    return rows, predictions


def summaries(
    rows: Sequence[dict[str, Any]], regions: Sequence[str]
) -> dict[str, dict[str, Summary]]:
    """Mean, standard deviation and n of defined cases, for each region and metric."""
    return {
        region: summarise(
            [
                {k: row[k] for k in (*METRICS, "dice_grid")}
                for row in rows
                if row["region"] == region
            ]
        )
        for region in regions
    }


def table(summary: dict[str, dict[str, Summary]], tolerance_mm: float) -> str:
    """The short table that a training ends with: Dice, NSD, HD95 a region, with n."""

    def cell(value: Summary) -> str:
        if value.n == 0:
            return "undefined"
        spread = f"±{value.std:6.3f}" if value.n > 1 else " " * 7
        return f"{value.mean:7.3f} {spread}  n={value.n:<4d}"

    width = max(len("region"), *(len(region) for region in summary))
    heads = ("Dice", f"NSD at {tolerance_mm:g} mm", "HD95 (mm)")
    lines = ["  ".join([f"{'region':{width}}", *(f"{head:24}" for head in heads)]).rstrip()]
    for region, values in summary.items():
        cells = (f"{cell(values[key]):24}" for key in ("dice", "nsd", "hd95_mm"))
        lines.append("  ".join([f"{region:{width}}", *cells]).rstrip())
    lines.append(
        "native grid, per case; both masks empty: 1, 1, 0 mm; one empty: 0, 0, the image's diagonal"
    )
    return "\n".join(lines)


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Per-case rows as CSV, in one step."""
    import csv
    import io

    from mvl_dist.files import write_text_atomically

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())
