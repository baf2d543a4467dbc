"""From logits of regions to one label map, and the mean over an ensemble.

Regions are marked each by itself (sigmoid) and may overlap; a file holds one value a voxel. The map
takes, at each voxel, the value that the logits together find most probable: a value's score is the
sum of the logits of the regions that contain it, and the background's is 0. So

    binary           1 where the logit is above 0
    labels           the label with the highest logit, if that is above 0
    regions          a label's own logit and those of the unions that contain it, added
    softmax          the most probable class

The sum is the log-odds of 'this value' against 'background' if regions err independently: log p is
sum(log sigmoid(z)) over the regions that contain the value + sum(log sigmoid(-z)) over the others,
and log sigmoid(z) - log sigmoid(-z) = z.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mvl_dist.losses import region_logits

# Float32 probabilities reach 0 and 1, whose log-odds are infinite.
NEAREST_TO_CERTAIN = 1e-7


def combine(models: Iterable[torch.Tensor], activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and probabilities of the regions, (R, D, H, W) each; a score above 0 marks a region.

    Args:
        models: each model's logits on one grid, (R, D, H, W), for softmax (1 + R, D, H, W). Several
            are averaged as probabilities; one keeps its logits as scores, to the last bit.
        activation: sigmoid or softmax.
    """
    waiting = iter(models)
    first = next(waiting)
    mean, count = _probabilities(first, activation), 1
    for logits in waiting:
        count += 1
        mean += (_probabilities(logits, activation) - mean) / count
    if activation == "softmax":  # log keeps the order of the classes
        scores = region_logits((first if count == 1 else mean.log())[None], activation)[0]
        return scores, mean[1:]
    return first if count == 1 else mean.logit(NEAREST_TO_CERTAIN), mean


def _probabilities(logits: torch.Tensor, activation: str) -> torch.Tensor:
    return logits.softmax(0) if activation == "softmax" else logits.sigmoid()


def label_map(scores: torch.Tensor, contains: torch.Tensor) -> torch.Tensor:
    """Index of the most probable label at each voxel: (D, H, W) int64, 0 the background.

    Args:
        scores: (R, D, H, W), above 0 where a region is marked.
        contains: (L, R), 1 where a label is part of a region.
    """
    votes = torch.einsum("lr,rdhw->ldhw", contains.to(scores), scores)
    best, index = votes.max(0)
    return torch.where(best > 0, index + 1, 0)
