"""The README of an exported model: what it is, how it was trained, how it did, how to run it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvl_dist.recipe import Recipe

COLUMNS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)"}


def read_scores(folder: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """Mean and number of defined cases of each region and metric in test_cases.csv, if it is there.

    An undefined value (NaN) does not count.
    """
    try:
        with (folder / "test_cases.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return {}
    scores: dict[str, dict[str, tuple[float, int]]] = {}
    for region in dict.fromkeys(row["region"] for row in rows):
        scores[region] = {}
        for metric in COLUMNS:
            values = [float(row[metric]) for row in rows if row["region"] == region]
            defined = [value for value in values if not math.isnan(value)]
            mean = sum(defined) / len(defined) if defined else math.nan
            scores[region][metric] = (mean, len(defined))
    return scores


def _cells(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _score_lines(folder: Path, recipe: Recipe) -> list[str]:
    scores = read_scores(folder)
    if not scores:
        return ["Not scored: the run had no test_cases.csv."]
    lines = [_cells(["region", *COLUMNS.values(), "cases"]), _cells(["---"] * (len(COLUMNS) + 2))]
    for region, values in scores.items():
        numbers = [f"{values[metric][0]:.3f}" for metric in COLUMNS]
        lines.append(_cells([region, *numbers, str(values["dice"][1])]))
    told = f"Held-out test cases, on their own grids; NSD at {recipe.task.tolerance_mm:g} mm."
    return [told, "", *lines]


def model_card(folder: Path, recipe: Recipe, about: Mapping[str, Any], needs_donor: bool) -> str:
    """Markdown of the model in an exported folder."""
    config, task = recipe.config, recipe.task
    regions = ", ".join(region.name for region in recipe.regions)
    size = "x".join(map(str, config.data.grid))
    resampled = f"resampled to {size} voxels (D, H, W of RAS+)"
    if config.data.resolution == "spaced":
        spacing = " x ".join(f"{mm:g}" for mm in recipe.spacing_mm)
        resampled = (
            f"resampled to {spacing} mm (D, H, W of RAS+), predicted in windows of {size} voxels "
            f"that overlap by {config.data.overlap:.0%}"
        )
    lines = [
        f"# {config.model.name} on {task.name}, fold {config.data.fold}",
        "",
        f"Segments {regions} in {', '.join(recipe.modalities)}. For research; no medical device.",
        "",
        "With MVL-Dist installed, from this folder:",
        "",
        "    mvl predict --run . --input scan.nii.gz --output predictions",
        "",
        "## Input and output",
        "",
        f"NIfTI of any orientation and spacing with {len(recipe.modalities)} channel(s): "
        f"{', '.join(recipe.modalities)}. The scan is normalised ({_normalisation(recipe)}), "
        f"{resampled}, and the logits are brought back to its own grid. Values of the label map: "
        + ", ".join(f"{value} {name}" for value, name in _values(recipe))
        + ".",
        "",
        "## Test",
        "",
        *_score_lines(folder, recipe),
        "",
        "## Training",
        "",
        f"Data: {task.source}; checksum {about['data_checksum']}; {_split(folder)}. Settings: "
        "config.yaml.",
        "",
        *_donor_lines(folder, recipe, about, needs_donor),
        f"Weights: best.safetensors, sha256 begins {about['weights_checksum']}. Written by "
        f"{about['program']}.",
        "",
    ]
    return "\n".join(lines)


def _values(recipe: Recipe) -> list[tuple[int, str]]:
    from mvl_dist.prediction import values_of

    return [(value.labels[0], value.name) for value in values_of(recipe)]


def _normalisation(recipe: Recipe) -> str:
    numbers = recipe.normalisation
    if "clip_hu" not in numbers:
        return f"mean 0, deviation 1 over {numbers['over']}"
    low, high = numbers["clip_hu"]
    return (
        f"clipped to {low:g}..{high:g} HU, mean {numbers['mean_hu']:.1f}, deviation "
        f"{numbers['std_hu']:.1f} HU of the training cases"
    )


def _split(folder: Path) -> str:
    try:
        split = json.loads((folder / "split.json").read_text())
        train, validation, test = (len(split[part]) for part in ("train", "validation", "test"))
    except (OSError, ValueError, KeyError, TypeError):
        return "split not known"
    return f"{train} cases trained, {validation} chose the epoch, {test} tested (split.json)"


def _donor_lines(
    folder: Path, recipe: Recipe, about: Mapping[str, Any], needs_donor: bool
) -> list[str]:
    if not needs_donor:
        return []
    donor = recipe.config.model.donor
    where = (
        "is in donor/, under its own licence"
        if (folder / "donor").is_dir()
        else "is not in this folder; `mvl predict` finds it by that name, or where --donor says"
    )
    layers = "all layers" if donor.layers == "all" else f"layer {', '.join(map(str, donor.layers))}"
    return [
        f"The frozen language-model block ({layers} of {donor.source}, checksum "
        f"{about['donor_checksum']}) {where}.",
        "",
    ]
