"""Dice + BCE in Triton: every sum the loss and its Dice need in one pass, the gradient in another.

Logits and labels are read as (rows, N): a row is one region of one sample. A program sums PART
values of a row; the shares are then summed in float64, so that counts are exact.
"""

# ruff: noqa: N803
# mypy: allow-untyped-defs, disable-error-code="import-untyped"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvl_dist.kernels._runnable import device_of

BLOCK = 1024
"""Values that a program of the gradient takes, 8 a thread."""

SUMMED = 512
"""Values that a program adds at a time: 4 a thread, as each has six sums in registers."""

PART = 32 * SUMMED
"""Values that it adds in all: counts are exact in float32, and 128^3 voxels make 128 programs."""

SUMS = 6
"""p, t, p t, BCE, predicted and true, predicted; t is 0 or 1, so its sum is the count of true."""


@triton.jit
def sums_kernel(logits, target, shares, N, BLOCK: tl.constexpr, PART: tl.constexpr):
    """Shares (rows, parts, 6) of a row's sums; parts are programs of the second axis."""
    row = tl.program_id(0).to(tl.int64)
    sum_p = tl.zeros([BLOCK], tl.float32)
    sum_t = tl.zeros([BLOCK], tl.float32)
    sum_pt = tl.zeros([BLOCK], tl.float32)
    sum_bce = tl.zeros([BLOCK], tl.float32)
    true_positive = tl.zeros([BLOCK], tl.float32)
    positive = tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(1) * PART
    for start in range(first, tl.minimum(first + PART, N), BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < N
        z = tl.load(logits + row * N + index, mask=inside, other=float("-inf")).to(tl.float32)
        t = tl.load(target + row * N + index, mask=inside, other=0).to(tl.float32)
        decay = tl.exp(-tl.abs(z))  # at most 1, whatever the logit
        p = tl.where(z > 0, 1.0, decay) / (1.0 + decay)
        bce = tl.maximum(z, 0.0) - tl.where(inside, z, 0.0) * t + _log1p(decay)
        predicted = tl.where(z > 0, 1.0, 0.0)
        sum_p += p
        sum_t += t
        sum_pt += p * t
        sum_bce += bce
        true_positive += predicted * t
        positive += predicted
    share = shares + (row * tl.num_programs(1) + tl.program_id(1)) * 6
    tl.store(share, tl.sum(sum_p, 0))
    tl.store(share + 1, tl.sum(sum_t, 0))
    tl.store(share + 2, tl.sum(sum_pt, 0))
    tl.store(share + 3, tl.sum(sum_bce, 0))
    tl.store(share + 4, tl.sum(true_positive, 0))
    tl.store(share + 5, tl.sum(positive, 0))


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1 without loss where x is small (Goldberg 1991, theorem 4)."""
    one_more = 1.0 + x
    return tl.where(
        one_more == 1.0, x, tl.log(one_more) * (x / tl.where(one_more == 1.0, 1.0, one_more - 1.0))
    )


@triton.jit
def gradient_kernel(logits, target, coefficients, dlogits, N, BLOCK: tl.constexpr):
    """dz = a (p - t) + (b + c t) p (1 - p), with a, b, c of the row."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < N
    z = tl.load(logits + row * N + index, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(target + row * N + index, mask=inside, other=0).to(tl.float32)
    a = tl.load(coefficients + row * 3)
    b = tl.load(coefficients + row * 3 + 1)
    c = tl.load(coefficients + row * 3 + 2)
    p = tl.sigmoid(z)
    dz = a * (p - t) + (b + c * t) * p * (1 - p)
    tl.store(dlogits + row * N + index, dz.to(dlogits.dtype.element_ty), mask=inside)


class DiceBCE(torch.autograd.Function):
    """(logits, target, smooth) -> (loss, counts); keeps both inputs and twelve bytes a row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
        z, t = logits.contiguous(), _as_bytes(target.contiguous())
        rows, n = logits.shape[0] * logits.shape[1], logits[0, 0].numel()
        parts = triton.cdiv(n, PART)
        shares = z.new_empty((rows, parts, SUMS), dtype=torch.float32)
        with device_of(z):
            sums_kernel[(rows, parts)](z, t, shares, n, BLOCK=SUMMED, PART=PART)
        sums = shares.sum(1, dtype=torch.float64)
        p, true, pt, bce, true_positive, positive = sums.unbind(1)
        overlap, total = 2 * pt + smooth, p + true + smooth
        loss = (1 - overlap / total + bce / n).mean().float()
        counts = torch.stack([true_positive, positive - true_positive, true - true_positive], 1)
        # Derivatives of the loss by p of a voxel: -2 t / total + overlap / total^2, a mean of rows.
        by_dice = [overlap / total.square(), -2 / total]
        coefficients = torch.stack([torch.full_like(p, 1 / n), *by_dice], 1).div_(rows).float()
        ctx.save_for_backward(z, t, coefficients)
        counts = counts.long().reshape(*logits.shape[:2], 3)
        ctx.mark_non_differentiable(counts)
        return loss, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, dcounts: None) -> tuple[Tensor, None, None]:
        z, t, coefficients = ctx.saved_tensors
        dz = torch.empty_like(z)
        n = z[0, 0].numel()
        with device_of(z):
            gradient_kernel[(len(coefficients), triton.cdiv(n, BLOCK))](
                z, t, coefficients * dloss, dz, n, BLOCK=BLOCK
            )
        return dz, None, None


def _as_bytes(target: Tensor) -> Tensor:
    return target.view(torch.uint8) if target.dtype == torch.bool else target
