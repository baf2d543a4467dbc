"""A trained model read from its folder alone: no store, no DeepSpeed.

The folder is a run's (see runs.py), one fetched from MLflow, or an exported one, which holds the
same four files: config.yaml, run.json, split.json, best.safetensors, and perhaps donor/.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from mvl_dist import runs
from mvl_dist.checkpoint import BEST
from mvl_dist.config import DonorConfig
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS
from mvl_dist.models.donors import Donor, load_donor
from mvl_dist.plan import make_plan
from mvl_dist.recipe import Recipe, recipe_from_plain

DONOR = "donor"


def read_recipe(folder: Path) -> Recipe:
    """How a scan becomes the input of the folder's model.

    Raises:
        UserError: not a run's folder; or one from before run.json held this, whose store is away.
    """
    config, about = runs.about_run(folder)
    if "normalisation" not in about:
        return _recipe_from_store(folder)
    try:
        return recipe_from_plain(about, config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / runs.ABOUT}: damaged ({type(error).__name__}: {error}): fetch or export "
            "the model again"
        ) from error


def _recipe_from_store(folder: Path) -> Recipe:
    config, about = runs.about_run(folder)
    try:
        plan = make_plan(config)
    except UserError as error:
        raise UserError(
            f"{folder} was trained by version 0.3 or older, and needs the store of then: {error}"
        ) from error
    if plan.data_checksum != about.get("data_checksum"):
        raise UserError(
            f"{config.data.store}/{config.data.task} has changed since {folder} was trained: its "
            "intensity statistics may be others; put the old store back"
        )
    return plan.recipe


def weights_checksum(folder: Path) -> str:
    """sha256 (16 digits) of the folder's weights file: which model this is.

    Raises:
        UserError: there is none.
    """
    try:
        with (folder / BEST).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(
            f"{folder / BEST}: no trained model there ({error.strerror}); train it first with "
            "'mvl train'"
        ) from error


def load_model(folder: Path, donor: str = "") -> tuple[Recipe, torch.nn.Module]:
    """The folder's model in evaluation mode, on the GPU if there is one.

    Args:
        donor: where its language-model block lies now: a known name or a path. By default the
            folder's own donor/, then the source that the run was trained with.

    Raises:
        UserError: not a run's folder, nothing trained in it, or no donor, or another one than it
            was trained with.
    """
    recipe = read_recipe(folder)
    block = _donor(folder, recipe, donor) if MODELS[recipe.config.model.name].needs_donor else None
    return recipe, runs.with_best_weights(folder, runs.build(recipe, block))


def donor_of(folder: Path, recipe: Recipe, asked: str = "") -> DonorConfig:
    """Where the donor of a folder's model is read from; see `load_model`."""
    own = folder / DONOR
    source = asked or (str(own) if own.is_dir() else recipe.config.model.donor.source)
    return replace(recipe.config.model.donor, source=source)


def _donor(folder: Path, recipe: Recipe, asked: str) -> Donor:
    place = donor_of(folder, recipe, asked)
    try:
        donor = load_donor(place.source, place.layers, seed=recipe.config.optim.seed)
    except UserError as error:
        if asked:
            raise
        raise UserError(
            f"{folder} needs its language-model block: {error}; or say where it lies with --donor"
        ) from error
    expected = runs.about_run(folder)[1].get("donor_checksum")
    if donor.checksum != expected:
        raise UserError(
            f"donor {place.source} is not the one that {folder} was trained with (checksum "
            f"{donor.checksum}, then {expected}): say where that one lies with --donor"
        )
    return donor
