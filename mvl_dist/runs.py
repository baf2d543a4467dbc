"""A run's folder: its names, and a trained model read back from it without DeepSpeed.

OUTPUT/TASK/MODEL-foldF-IDENTITY/
  config.yaml  split.json  run.json       what was run, and how a scan becomes its input
  journal.jsonl  mlflow.json              what was tracked
  checkpoints/                            for resuming
  best.safetensors                        the model with the best validation Dice
  test_cases.csv  test_overlay.png        how it did
  validation_cases.csv  postprocessing.json        what `mvl evaluate` adds
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mvl_dist import checkpoint
from mvl_dist.config import RunConfig, from_plain, to_plain
from mvl_dist.errors import UserError
from mvl_dist.files import write_text_atomically
from mvl_dist.models import MODELS, build_model
from mvl_dist.models.count import donor_parameter_names
from mvl_dist.models.donors import Donor, load_donor
from mvl_dist.place import StorePlace
from mvl_dist.plan import Plan, make_plan
from mvl_dist.recipe import Recipe

CONFIG = "config.yaml"
ABOUT = "run.json"


def run_folder(config: RunConfig, identity: str) -> Path:
    """Where a run lies; the same run lies in the same place."""
    name = f"{config.model.name}-fold{config.data.fold}-{identity}"
    return config.output / config.data.task / name


def load_run_donor(config: RunConfig) -> Donor | None:
    """The donor that a config asks for, or None for a model without one."""
    if not MODELS[config.model.name].needs_donor:
        return None
    donor = config.model.donor
    return load_donor(donor.source, donor.layers, seed=config.optim.seed)


def build(recipe: Recipe, donor: Donor | None) -> torch.nn.Module:
    """A run's model with its initial weights, the same on every rank."""
    torch.manual_seed(recipe.config.optim.seed)
    return build_model(
        recipe.config.model,
        in_channels=len(recipe.modalities),
        out_channels=recipe.out_channels,
        grid=recipe.config.data.grid,
        donor=donor,
        spacing_mm=recipe.spacing_mm,
    )


def frozen_checksum(model: torch.nn.Module) -> str:
    """Checksum of the frozen tensors, which no checkpoint holds: they must come out the same."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_description(folder: Path, plan: Plan, about: dict[str, Any]) -> None:
    """Write config.yaml, split.json and run.json: a run is understood from its folder alone."""
    config = plan.config
    donor = config.model.donor
    if Path(donor.source).exists():
        donor = replace(donor, source=str(Path(donor.source).absolute()))
    config = replace(  # the folder is read from elsewhere later
        config,
        data=replace(config.data, store=config.data.store.absolute()),
        model=replace(config.model, donor=donor),
        output=config.output.absolute(),
    )
    write_text_atomically(folder / CONFIG, yaml.safe_dump(to_plain(config), sort_keys=False))
    write_text_atomically(folder / "split.json", json.dumps(plan.split.to_dict(), indent=1))
    write_text_atomically(folder / ABOUT, json.dumps(about, indent=1))


def untrained(folder: Path, store: StorePlace | None = None) -> torch.nn.Module:
    """A run's model with the weights it began with.

    Raises:
        UserError: as `load_trained`.
    """
    return _plan_and_model(folder, store)[1]


def load_trained(folder: Path, store: StorePlace | None = None) -> tuple[Plan, torch.nn.Module]:
    """Read a trained run back as a plain model in evaluation mode, on the GPU if there is one.

    Args:
        folder: the run's folder.
        store: where the store lies now, if it was moved.

    Raises:
        UserError: not a run's folder, nothing trained in it, or another store or donor than it was
            trained with.
    """
    plan, model = _plan_and_model(folder, store)
    return plan, with_best_weights(folder, model)


def with_best_weights(folder: Path, model: torch.nn.Module) -> torch.nn.Module:
    """The model with the run's best weights, in evaluation mode, on the GPU if there is one.

    On the GPU it keeps the precision in which it was trained; on the CPU it is float32.

    Raises:
        UserError: nothing trained in the folder, or weights of another model.
    """
    metadata = checkpoint.load_best(folder, model, donor_parameter_names(model))
    dtype = torch.float32
    if torch.cuda.is_available():
        model.to("cuda")
        dtype = torch.bfloat16 if metadata.get("dtype") == "bfloat16" else dtype
    return model.to(dtype).eval()


def about_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """What a run's folder says of it: its config, and run.json.

    Raises:
        UserError: not a run's folder.
    """
    try:
        plain = yaml.safe_load((folder / CONFIG).read_text())
        about = dict(json.loads((folder / ABOUT).read_text()))
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: not a run's folder ({CONFIG} or {ABOUT} missing or damaged); a training "
            "prints its folder when it ends"
        ) from error
    return from_plain(plain, RunConfig(), str(folder / CONFIG)), about


def _plan_and_model(folder: Path, store: StorePlace | None) -> tuple[Plan, torch.nn.Module]:
    config, about = about_run(folder)
    if store is not None:
        config = replace(config, data=replace(config.data, store=store))
    plan = make_plan(config)
    if plan.data_checksum != about["data_checksum"]:
        raise UserError(
            f"{config.data.store}/{config.data.task} has changed since {folder} was trained "
            f"(checksum {plan.data_checksum}, then {about['data_checksum']}): its held-out "
            "cases may have been trained on; pass the old store with --store"
        )
    donor = load_run_donor(config)
    if donor is not None and donor.checksum != about["donor_checksum"]:
        raise UserError(
            f"donor {config.model.donor.source} is not the one that {folder} was trained with"
        )
    return plan, build(plan.recipe, donor)
