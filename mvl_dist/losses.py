"""The training loss (soft Dice + binary cross-entropy) and the Dice shown during training.

Both work on logits, per sample and per region, so that a value is the mean over samples and does
not depend on how a batch is split over ranks. Regions may overlap: each has its own sigmoid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_bce_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, averaged over samples and regions: a scalar.

    Per sample and region, with p = sigmoid(logits):

        1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)  +  mean(BCE(p, t))

    Sums run in float32 (float64 for float64 logits) whatever the precision of the logits. An empty
    target is a case like any other: its loss falls to 0 as the prediction empties.

    Args:
        logits: (B, R, D, H, W), any floating dtype.
        target: (B, R, D, H, W) of 0 and 1, any dtype.
        smooth: in voxels; must be positive, for a target and a prediction that are both empty.

    Raises:
        ValueError: shapes that differ or aren't 5D, or a `smooth` that isn't positive.
    """
    _check_shapes(logits, target)
    if not smooth > 0:
        raise ValueError(f"smooth must be positive, got {smooth}")
    precision = torch.promote_types(logits.dtype, torch.float32)
    z = logits.to(precision).flatten(2)
    t = target.to(precision).flatten(2)
    p = z.sigmoid()
    overlap = 2 * (p * t).sum(-1) + smooth
    total = p.sum(-1) + t.sum(-1) + smooth
    return (1 - overlap / total).mean() + F.binary_cross_entropy_with_logits(z, t)


@torch.no_grad()
def region_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice of each sample and region where a logit above 0 is foreground: (B, R) in float32.

    1 where prediction and target are both empty, as in `mvl_dist.metrics`. For validation: it
    counts voxels and has no gradient.

    Args:
        logits: (B, R, D, H, W), any floating dtype.
        target: (B, R, D, H, W) of 0 and 1, any dtype.

    Raises:
        ValueError: shapes that differ or aren't 5D.
    """
    _check_shapes(logits, target)
    p = (logits > 0).flatten(2)
    t = (target > 0).flatten(2)
    overlap = 2 * (p & t).sum(-1)
    total = p.sum(-1) + t.sum(-1)
    return torch.where(total > 0, overlap / total, 1.0)


def _check_shapes(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape or logits.ndim != 5:
        raise ValueError(
            "logits and target must both be (B, R, D, H, W), "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
