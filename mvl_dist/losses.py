"""The training loss (soft Dice + cross-entropy) and the Dice shown during training.

All work on logits, per sample and per region, so that a value is the mean over samples and does
not depend on how a batch is split over ranks. With `sigmoid` each region is marked by itself, so
regions may overlap; with `softmax` they exclude each other and channel 0 is the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mvl_dist.kernels import dice_bce, dispatch


def training_loss(outputs: Tensor | Sequence[Tensor], target: Tensor, activation: str) -> Tensor:
    """Loss of a model's output in training: a scalar.

    Several outputs (deep supervision) are weighted 1, 1/2, 1/4, ... in their order, and the
    weights sum to 1 (Isensee et al., nnU-Net, Nature Methods 2021, supplementary note 2).

    Args:
        outputs: logits (B, R, D, H, W), or (B, 1 + R, D, H, W) for softmax, or a sequence of such.
        target: (B, R, D, H, W) of 0 and 1.
        activation: sigmoid or softmax.
    """
    one_loss = dice_ce_loss if activation == "softmax" else dice_bce_loss
    if isinstance(outputs, Tensor):
        return one_loss(outputs, target)
    weights = [2.0**-depth for depth in range(len(outputs))]
    losses = [w * one_loss(o, target) for w, o in zip(weights, outputs, strict=True)]
    return torch.stack(losses).sum() / sum(weights)


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
    if dispatch.composes("loss", logits, "") and smooth > 0:
        return dispatch.run(dice_bce, logits, target, smooth)[0]
    precision = torch.promote_types(logits.dtype, torch.float32)
    z = logits.to(precision).flatten(2)
    t = target.to(precision).flatten(2)
    return _soft_dice_loss(z.sigmoid(), t, smooth) + F.binary_cross_entropy_with_logits(z, t)


def dice_ce_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of the regions plus cross-entropy over all classes: a scalar.

    As `dice_bce_loss` with p = softmax(logits) without its background channel.

    Args:
        logits: (B, 1 + R, D, H, W), the background first.
        target: (B, R, D, H, W) of 0 and 1; at most one region is 1 at a voxel.
        smooth: in voxels; must be positive.

    Raises:
        ValueError: shapes that do not belong together or aren't 5D, or a `smooth` that isn't
            positive.
    """
    _check_shapes(logits[:, 1:], target)
    precision = torch.promote_types(logits.dtype, torch.float32)
    z = logits.to(precision).flatten(2)
    t = target.to(precision).flatten(2)
    classes = torch.cat([1 - t.sum(1, keepdim=True), t], 1)
    return _soft_dice_loss(z.softmax(1)[:, 1:], t, smooth) + F.cross_entropy(z, classes)


def _soft_dice_loss(p: Tensor, t: Tensor, smooth: float) -> Tensor:
    """1 - soft Dice of probabilities and targets (B, R, N), averaged over samples and regions."""
    if not smooth > 0:
        raise ValueError(f"smooth must be positive, got {smooth}")
    overlap = 2 * (p * t).sum(-1) + smooth
    total = p.sum(-1) + t.sum(-1) + smooth
    return (1 - overlap / total).mean()


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
