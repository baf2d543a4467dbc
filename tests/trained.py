"""Runs as a training leaves them, without its minutes: weights are drawn, not learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mvl_dist import checkpoint, runs
from mvl_dist.config import RunConfig, identity, smoke
from mvl_dist.models import MODELS
from mvl_dist.plan import make_plan


def small_config(store: Path, task: str = "91", fold: int = 0, target: str = "labels") -> RunConfig:
    """A ViT of two narrow blocks at 16^3."""
    config = smoke()
    return replace(
        config,
        data=replace(
            config.data, store=store, task=task, fold=fold, grid=(16, 16, 16), target=target
        ),
        model=replace(config.model, name="vit_baseline", depth=2, width=16, heads=2),
    )


def make_run(output: Path, config: RunConfig, trained: bool = True) -> Path:
    """The run's folder; its weights depend on the fold."""
    config = replace(config, output=output)
    plan = make_plan(config)
    model = runs.build(plan.recipe, None)
    torch.manual_seed(config.data.fold + 1)
    weights = {
        name: value + 0.05 * torch.randn_like(value) for name, value in model.state_dict().items()
    }
    reads = MODELS[config.model.name].reads
    folder = runs.run_folder(plan.config, identity(config, reads, plan.data_checksum))
    folder.mkdir(parents=True)
    about = {"data_checksum": plan.data_checksum, "donor_checksum": ""}
    runs.write_description(folder, plan, about)
    if trained:
        checkpoint.write_safetensors(folder / checkpoint.BEST, weights, {"dtype": "float32"})
    return folder
