"""A run's folder with an untrained model in it, made by the project's own functions in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mvl_dist import checkpoint, runs
from mvl_dist.config import ModelConfig, RunConfig, smoke
from mvl_dist.models.count import donor_parameter_names
from mvl_dist.plan import Plan, make_plan

GRID = (16, 16, 16)
# Weights of a language model's shape without any file.
RANDOM_DONOR = "random:minilm-l6"


def config(store: Path, task: str, fold: int = 0, seed: int = 0, **changes: object) -> RunConfig:
    """A small run; `changes` are of its model, and those of its data that are named here."""
    base = smoke()
    of_data = ("target", "channels", "resolution", "overlap")
    data = {key: changes.pop(key) for key in of_data if key in changes}
    model: dict[str, object] = {"name": "vit_baseline", "depth": 1, "llm_position": 1, **changes}
    return replace(
        base,
        data=replace(base.data, store=store, task=task, grid=GRID, fold=fold, **data),  # type: ignore[arg-type]
        model=replace(base.model, **model),  # type: ignore[arg-type]
        optim=replace(base.optim, seed=seed),
    )


def with_donor(model: ModelConfig, source: str) -> ModelConfig:
    """The model around another donor."""
    return replace(model, donor=replace(model.donor, source=source))


def save_run(folder: Path, wanted: RunConfig) -> Plan:
    """Write what a training writes; the model answers nonsense, and always the same."""
    plan = make_plan(wanted)
    donor = runs.load_run_donor(plan.config)
    model = runs.build(plan.recipe, donor)
    folder.mkdir(parents=True)
    about = {
        "data_checksum": plan.data_checksum,
        "donor_checksum": donor.checksum if donor else "",
        **plan.recipe.to_plain(),
    }
    runs.write_description(folder, plan, about)
    left_out = donor_parameter_names(model)
    weights = {n: p.detach() for n, p in model.state_dict().items() if n not in left_out}
    checkpoint.write_safetensors(folder / checkpoint.BEST, weights, {"dtype": "float32"})
    return plan
