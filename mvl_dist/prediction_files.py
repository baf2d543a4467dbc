"""Cases to predict as files: which models, what is there already, and what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvl_dist import __version__
from mvl_dist.errors import UserError
from mvl_dist.files import write_text_atomically
from mvl_dist.inputs import Case
from mvl_dist.prediction import Result, predict, values_of
from mvl_dist.recipe import Recipe
from mvl_dist.scans import Scan, read_case, write_over
from mvl_dist.trained import load_model, read_recipe, weights_checksum


def common_recipe(folders: Sequence[Path]) -> Recipe:
    """The recipe of models that can be averaged.

    Raises:
        UserError: they segment other things, or take another input.
    """
    first, *others = (read_recipe(folder) for folder in folders)

    def asks(recipe: Recipe) -> dict[str, Any]:
        data = recipe.config.data
        return {
            "task": recipe.task.name,
            "grid": data.grid,
            "resolution": data.resolution,
            "spacing": recipe.spacing_mm if data.resolution == "spaced" else None,
            "overlap": data.overlap,
            "channels": data.channels,
            "target": data.target,
            "activation": recipe.config.model.activation,
            "normalisation": recipe.normalisation,
        }

    for folder, other in zip(folders[1:], others, strict=True):
        for key, value in asks(first).items():
            if asks(other)[key] != value:
                raise UserError(
                    f"{folder} cannot be averaged with {folders[0]}: their {key} differs "
                    f"({asks(other)[key]}, {value}); an ensemble is made of folds of one study"
                )
    return first


@dataclass(frozen=True)
class Job:
    """A case to predict and write into `output`.

    Attributes:
        largest: regions of which only the largest component is kept; None where nobody asked.
    """

    case: Case
    output: Path
    probabilities: bool
    orientation: str
    models: tuple[Mapping[str, Any], ...]
    largest: tuple[str, ...] | None = None

    @property
    def label_file(self) -> Path:
        """The label map."""
        return self.output / f"{self.case.name}.nii.gz"

    @property
    def probability_file(self) -> Path:
        """The regions' probabilities."""
        return self.output / f"{self.case.name}_probabilities.nii.gz"

    @property
    def about_file(self) -> Path:
        """Volumes and origin; written last, so that it vouches for the others."""
        return self.output / f"{self.case.name}.json"


def describe_models(folders: Sequence[Path]) -> tuple[Mapping[str, Any], ...]:
    """Which models a prediction is of: name, fold and weights' checksum."""
    recipes = [(folder, read_recipe(folder)) for folder in folders]
    return tuple(
        {
            "model": recipe.config.model.name,
            "task": recipe.task.name,
            "fold": recipe.config.data.fold,
            "weights": weights_checksum(folder),
        }
        for folder, recipe in recipes
    )


def is_done(job: Job) -> bool:
    """Whether an earlier start left this very prediction.

    Raises:
        UserError: it is there, but of other models, or cleaned otherwise.
    """
    try:
        about = json.loads(job.about_file.read_text())
        models, inputs = about["models"], about["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if models != [dict(model) for model in job.models]:
        raise UserError(
            f"{job.about_file} is a prediction of another model: choose another --output, or "
            "replace it with --overwrite"
        )
    largest = about.get("largest_component")
    if largest != (None if job.largest is None else list(job.largest)):
        raise UserError(
            f"{job.about_file} is a prediction of these models with another --largest-component "
            f"({_said(largest)} there): choose another --output, or replace it with --overwrite"
        )
    if inputs != job.case.sources() or not job.label_file.is_file():
        return False
    return job.probability_file.is_file() or not job.probabilities


def _said(largest: Sequence[str] | None) -> str:
    return "not asked for" if largest is None else ", ".join(largest) or "no region"


class Predictor:
    """Models loaded once in a process, and applied to one job after another."""

    def __init__(self, folders: Sequence[Path], donor: str) -> None:
        loaded = [load_model(folder, donor) for folder in folders]
        self.recipe = loaded[0][0]
        self.models = [model for _, model in loaded]

    def run(self, job: Job) -> str:
        """Predict a case and write it; returns what is wrong with its files, or ''.

        Raises:
            UserError: the output cannot be written to.
        """
        recipe = self.recipe
        sources = job.case.sources()
        try:
            scan = read_case(
                job.case, recipe.task.modalities, len(recipe.modalities), job.orientation
            )
            result = predict(scan.image, scan.spacing_mm, recipe, self.models, job.largest or ())
        except UserError as error:
            return str(error)
        except torch.OutOfMemoryError:
            return (
                f"{job.case.files[0]}: does not fit into the GPU's memory: predict it on the CPU "
                "with CUDA_VISIBLE_DEVICES= (nothing after the equals sign)"
            )
        write_over(job.label_file, result.labels, scan)
        if job.probabilities:
            write_over(job.probability_file, result.probabilities, scan)
        about = self._about(job, scan, result, sources)
        write_text_atomically(job.about_file, json.dumps(about, indent=1))
        return ""

    def _about(
        self, job: Job, scan: Scan, result: Result, sources: list[dict[str, Any]]
    ) -> dict[str, Any]:
        values = values_of(self.recipe)
        binary = self.recipe.config.data.target == "binary"
        regions = values if binary else self.recipe.regions
        own = result.masks.sum(axis=(1, 2, 3))
        return {
            "case": job.case.name,
            "values": {"0": "background", **{str(v.labels[0]): v.name for v in values}},
            "volumes_ml": {
                region.name: float(np.isin(result.labels, region.labels).sum()) * scan.voxel_ml
                for region in regions
            },
            "own_mask_volumes_ml": {
                region.name: float(count) * scan.voxel_ml
                for region, count in zip(regions, own, strict=True)
            },
            "probability_channels": [region.name for region in regions],
            "orientation": scan.orientation.codes,
            "spacing_mm": list(scan.spacing_mm[::-1]),
            "inputs": sources,
            "models": [dict(model) for model in job.models],
            "largest_component": None if job.largest is None else list(job.largest),
            "program": f"mvl-dist {__version__}",
        }
