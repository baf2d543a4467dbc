"""Soft Dice + binary cross-entropy, and the confusion counts, in one pass over logits and labels.

The loss is that of `mvl_dist.losses.dice_bce_loss`; per sample and region, with p = sigmoid(z):

    1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)  +  mean(BCE(p, t))

Eager makes one pass over the volume for each operation, in float32, and keeps three such copies of
it for backward; the kernel makes one pass in each direction and keeps logits and labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvl_dist.kernels._runnable import why_not


def reference(logits: Tensor, target: Tensor, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """(loss, counts): a scalar in float32 or better, and (B, R, 3) of int64.

    Counts are true positives, false positives and false negatives, a logit above 0 being positive.

    Args:
        logits: (B, R, D, H, W), any floating dtype.
        target: (B, R, D, H, W) of 0 and 1, any dtype.
        smooth: in voxels; must be positive.
    """
    precision = torch.promote_types(logits.dtype, torch.float32)
    z, t = logits.to(precision).flatten(2), target.to(precision).flatten(2)
    p = z.sigmoid()
    dice = (2 * (p * t).sum(-1) + smooth) / (p.sum(-1) + t.sum(-1) + smooth)
    loss = (1 - dice).mean() + F.binary_cross_entropy_with_logits(z, t)
    positive, true = z.detach() > 0, t > 0
    counts = [positive & true, positive & ~true, ~positive & true]
    return loss, torch.stack([count.sum(-1) for count in counts], -1)


torch_fast = reference


def triton_fused(logits: Tensor, target: Tensor, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """As `reference`, one kernel forward and one backward, float32 inside.

    Logits and labels that are not contiguous are copied first.
    """
    from mvl_dist.kernels._triton_dice_bce import DiceBCE

    return DiceBCE.apply(logits, target, smooth)


def cannot(logits: Tensor, target: Tensor, smooth: float = 1.0) -> str:
    """Why Triton cannot run these arguments; '' if it can."""
    if logits.shape != target.shape or logits.ndim != 5 or not logits.numel():
        return f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
    if target.device != logits.device:
        return f"logits on {logits.device} and target on {target.device}"
    return why_not(logits)


def dice_of(counts: Tensor) -> Tensor:
    """Dice (B, R) in float32 of counts (B, R, 3); 1 where prediction and target are both empty."""
    tp, fp, fn = counts.unbind(-1)
    total = 2 * tp + fp + fn
    return torch.where(total > 0, 2 * tp / total, 1.0)
