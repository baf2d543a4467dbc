"""Finished runs of a small study, logged as a training logs them, with values that tests choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mvl_dist.metrics import METRICS
from mvl_dist.score_table import write_csv
from mvl_dist.study.grid import Study, StudyRun, load_study
from mvl_dist.tracking import Tracker

RANDOM = {"model": {"donor": {"source": "random:smollm2-135m"}}}
VARIANTS = {"ViT-Baseline": {"model": {"name": "vit_baseline"}}, "MedVisionLlama": {}}
Values = Callable[[StudyRun], Mapping[str, float] | None]


def write_study(folder: Path, **changes: Any) -> Path:
    """A study of both models and the random control on Task04, two folds."""
    models = ["ViT-Baseline", "MedVisionLlama"]
    settings: dict[str, Any] = {
        "name": "trial",
        "preset": "smoke",
        "set": {"data": {"target": "binary"}},
        "tasks": ["Task04"],
        "folds": [0, 1],
        "variants": {**VARIANTS, "random block": RANDOM},
        "tables": {
            "Table 2": {"models": models},
            "Table 3": {"models": models},
            "weights": {"models": [*models, "random block"]},
        },
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def rows_of(run: StudyRun, dice: Mapping[str, float], region: str) -> list[dict[str, Any]]:
    """Per-case rows in which every overlap metric is the case's Dice."""
    return [
        {
            "task": run.config.data.task,
            "case": case,
            "region": region,
            **dict.fromkeys(METRICS, value),
            "hd95_mm": 10 * (1 - value),
            "hd100_mm": 20 * (1 - value),
            "dice_grid": value,
        }
        for case, value in dice.items()
    ]


def log_run(
    output: Path,
    uri: str,
    run: StudyRun,
    dice: Mapping[str, float],
    region: str = "foreground",
    status: Any = "FINISHED",
    data_checksum: str = "same",
    finish: Callable[[Tracker, Path], None] | None = None,
) -> Tracker:
    """Log one run; `finish` may add to it."""
    data = run.config.data
    folder = output / data.task / f"{run.label.replace(' ', '_')}-{run.key}"
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(folder, uri, run.config.experiment, folder.name)
    tracker.tags({"key": run.key, "task": data.task, "data_checksum": data_checksum})
    tracker.tags({"model": run.config.model.name, "fold": data.fold, "device": "cpu, 1 threads"})
    tracker.params({"parameters": {"trainable": 250_000, "frozen": 3_500_000}})
    if dice:
        write_csv(rows_of(run, dice, region), folder / "test_cases.csv")
        tracker.artifact(folder / "test_cases.csv")
    if finish:
        finish(tracker, folder)
    assert tracker.close(status) == ""
    return tracker


def log_study(output: Path, uri: str, path: Path, values: Values) -> Study:
    """Log every run of a study for which `values` gives something."""
    study = load_study(path)
    for run in study.runs:
        dice = values(run)
        if dice is not None:
            log_run(output, uri, run, dice)
    return study


def spool(output: Path) -> str:
    """The address of a spool: what `mvl train` writes without any server."""
    output.mkdir(parents=True, exist_ok=True)
    return f"spool:{output.resolve()}"


def cases(count: int, shift: float = 0.0) -> dict[str, float]:
    """Cases with Dice 0.60, 0.61, ... plus a shift."""
    return {f"case_{index:03d}": 0.6 + 0.01 * index + shift for index in range(count)}
