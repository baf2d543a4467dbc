"""From logits of regions to one label map, and several models' logits to one.

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

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_probability(logits: Sequence[Tensor], activation: str) -> Tensor:
    """Logits of the mean of several models' probabilities; of one model, its own.

    In log space, so that a probability that rounds to 1 does not become an infinite logit.

    Args:
        logits: (B, C, D, H, W) each.
        activation: sigmoid (a logit for each region) or softmax (log-probabilities of the classes).
    """
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack(list(logits))
    if activation == "softmax":
        return stacked.log_softmax(2).logsumexp(0) - math.log(len(logits))
    return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)


def region_logits(logits: Tensor, activation: str) -> Tensor:
    """Logits that are above 0 exactly where a region is marked: (B, R, D, H, W).

    For sigmoid these are the logits themselves. For softmax a region's is its margin over the best
    other class, which is positive where the region is the argmax.
    """
    if activation == "sigmoid":
        return logits
    best = logits.topk(2, dim=1).values
    others = torch.where(logits == best[:, :1], best[:, 1:], best[:, :1])
    return (logits - others)[:, 1:]


def region_probabilities(logits: Tensor, activation: str) -> Tensor:
    """(B, C, D, H, W) logits -> (B, R, D, H, W)."""
    return logits.softmax(1)[:, 1:] if activation == "softmax" else logits.sigmoid()


def label_map(scores: Tensor, contains: Tensor) -> Tensor:
    """Index of the most probable label at each voxel: (D, H, W) int64, 0 the background.

    Args:
        scores: (R, D, H, W), above 0 where a region is marked.
        contains: (L, R), 1 where a label is part of a region.
    """
    votes = torch.einsum("lr,rdhw->ldhw", contains.to(scores), scores)
    best, index = votes.max(0)
    return torch.where(best > 0, index + 1, 0)
