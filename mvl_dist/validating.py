"""Loss and Dice over the validation cases, shared out among the ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from mvl_dist.data import CaseDataset, region_masks
from mvl_dist.distributed import gather_objects
from mvl_dist.inference import forward_calls, volume_logits
from mvl_dist.labelling import region_logits
from mvl_dist.losses import region_dice, training_loss
from mvl_dist.metrics import metric_name
from mvl_dist.optimizing import dtype_name
from mvl_dist.plan import Plan
from mvl_dist.sharing import share_by_size
from mvl_dist.watchdog import Watchdog


@torch.no_grad()
def validate(engine: Any, plan: Plan, cases: CaseDataset, watchdog: Watchdog) -> dict[str, float]:
    """Loss and Dice over whole cases, each once (all ranks).

    At the store's grid, or at the task's spacing where the model sees crops.

    Args:
        engine: DeepSpeed's.
        watchdog: is told of every forward.

    Returns:
        `val_loss`, `val_dice`, and `val_dice/REGION` of each region that the model marks.
    """
    engine.eval()
    recipe, activation = plan.recipe, plan.config.model.activation
    device, dtype = engine.device, getattr(torch, dtype_name(engine))
    rank, world_size = dist.get_rank(), dist.get_world_size()

    def forward(image: torch.Tensor) -> torch.Tensor:
        watchdog.advance("validation")
        logits: torch.Tensor = engine(image)
        return logits

    calls = {
        index: forward_calls(
            plan.manifest.cases[case].spaced_shape or recipe.config.data.grid, recipe
        )
        for index, case in enumerate(cases.cases)
    }
    shares = [share_by_size(list(calls), calls, each, world_size) for each in range(world_size)]
    rows: list[tuple[float, list[float]]] = []
    for item in cases.in_turn(shares[rank]):
        logits = volume_logits(forward, item["image"], recipe, device, dtype)
        target = region_masks(item["label"][None].to(logits.device), plan.regions)
        loss = float(training_loss(logits, target, activation))
        dice = region_dice(region_logits(logits, activation), target)
        rows.append((loss, dice[0].tolist()))
    # ZeRO-3 gathers weights in every forward: all ranks must call it equally often.
    totals = [sum(calls[index] for index in part) for part in shares]
    nothing = torch.zeros(1, len(recipe.modalities), *recipe.config.data.grid)
    for _ in range(max(totals) - totals[rank]):
        forward(nothing.to(device, dtype))
    rows = gather_objects(rows)
    values = {"val_loss": _mean([loss for loss, _ in rows])}
    for index, region in enumerate(plan.regions):
        values[f"val_dice/{metric_name(region.name)}"] = _mean([dice[index] for _, dice in rows])
    values["val_dice"] = _mean([_mean(dice) for _, dice in rows])
    return values


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
