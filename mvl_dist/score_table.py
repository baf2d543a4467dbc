"""Scores of cases and regions: summed up over cases, as a table, for MLflow and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvl_dist.files import write_text_atomically
from mvl_dist.metrics import CONVENTIONS, GRID_METRICS, METRICS, metric_name


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over the `n` cases in which a metric is defined.

    The mean is NaN when n is 0, the standard deviation when n is below 2.
    """

    mean: float
    std: float
    n: int


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, Summary]:
    """Mean, standard deviation and number of defined (not NaN) cases of every metric.

    Raises:
        ValueError: rows with different metrics.
    """
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("rows to summarise must all have the same metrics")
    summaries = {}
    for key in rows[0] if rows else ():
        values = np.array([row[key] for row in rows if not math.isnan(row[key])], dtype=np.float64)
        summaries[key] = Summary(
            mean=float(values.mean()) if values.size else math.nan,
            std=float(values.std(ddof=1)) if values.size > 1 else math.nan,
            n=values.size,
        )
    return summaries


def summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Summary]]:
    """Mean, standard deviation and n of defined cases, for each region and metric of the rows."""
    by_region: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        values = {key: row[key] for key in (*METRICS, *GRID_METRICS) if key in row}
        by_region.setdefault(str(row["region"]), []).append(values)
    return {region: summarise(values) for region, values in by_region.items()}


def tracked(summary: Mapping[str, Mapping[str, Summary]], prefix: str) -> dict[str, float]:
    """A summary as MLflow's metrics: the mean and n of each metric and region."""
    values: dict[str, float] = {}
    for region, metrics in summary.items():
        for key, value in metrics.items():
            values[f"{prefix}_{key}/{metric_name(region)}"] = value.mean
            values[f"{prefix}_n_{key}/{metric_name(region)}"] = value.n
    return values


def table(summary: Mapping[str, Mapping[str, Summary]], tolerance_mm: float) -> str:
    """What a training ends with: metrics in mm, and at the resampled grid as the paper has them."""
    lines = _columns(
        summary,
        {
            "dice": "Dice",
            "nsd": f"NSD at {tolerance_mm:g} mm",
            "hd95_mm": "HD95 (mm)",
            "hd100_mm": "HD100 (mm)",
            "false_positive_ml": "false positive (ml)",
        },
    )
    lines.append("per case on the scan's own grid, against its untouched label")
    grid = {
        "dice_grid": "Dice",
        "nsd_grid": "NSD at 1 voxel",
        "hd95_grid_voxels": "HD95 (voxels)",
        "sensitivity_grid": "sensitivity",
        "specificity_grid": "specificity",
    }
    shown = {
        key: head
        for key, head in grid.items()
        if all(key in values and values[key].n for values in summary.values())
    }
    if shown:
        lines += ["", *_columns(summary, shown)]
        lines.append("the same cases on the resampled grid, as in the paper")
    return "\n".join([*lines, "", *CONVENTIONS])


def _columns(summary: Mapping[str, Mapping[str, Summary]], columns: Mapping[str, str]) -> list[str]:
    width = max(len("region"), *(len(region) for region in summary))
    heads = "".join(f"{head:22}" for head in columns.values())
    lines = [f"{'region':{width}}     n  {heads}".rstrip()]
    for region, values in summary.items():
        n = max(values[key].n for key in columns)
        cells = "".join(f"{_cell(values[key], n):22}" for key in columns)
        lines.append(f"{region:{width}}  {n:4d}  {cells}".rstrip())
    return lines


def _cell(value: Summary, n: int) -> str:
    """Mean and deviation, and its own n where fewer cases define it than the row says."""
    if value.n == 0:
        return "undefined"
    spread = f" ±{value.std:6.3f}" if value.n > 1 else ""
    fewer = f" n={value.n}" if value.n < n else ""
    return f"{value.mean:7.3f}{spread}{fewer}"


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Per-case rows as CSV, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())
