"""RMSNorm and LayerNorm of x + residual in Triton, forward and backward.

    s = x + residual    n = (s - c mean(s)) / sqrt(mean((s - c mean(s))^2) + eps)    y = n w + b

with c = 0 for RMSNorm and c = 1 for LayerNorm. A program holds ROWS whole rows of K values in
registers (BLOCK is K's next power of two), so backward computes mean and deviation anew: only s is
kept, which the residual stream keeps alive anyway.
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

from mvl_dist.kernels._runnable import device_of, processors, rows_of

MOST_COLUMNS = 16384
"""One row is at most this wide: 64 float32 registers a thread."""


@triton.jit
def forward_kernel(
    x, residual, weight, bias, y, s, M, K, x_stride, residual_stride, eps,
    ADD: tl.constexpr, CENTRE: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y (M, K) and, with ADD, s (M, K) of x and residual (M, K), whose rows may lie apart."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < M) & (column < K)
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        other = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0)
        rounded = (value + other.to(tl.float32)).to(s.dtype.element_ty)
        tl.store(s + row * K + column, rounded, mask=inside)
        value = rounded.to(tl.float32)  # backward sees s as it is stored
    if CENTRE:
        value = tl.where(inside, value - tl.sum(value, 1)[:, None] / K, 0.0)
    normal = value * tl.rsqrt(tl.sum(value * value, 1) / K + eps)[:, None]
    result = normal * tl.load(weight + column, mask=column < K, other=0.0).to(tl.float32)
    if HAS_BIAS:
        result += tl.load(bias + column, mask=column < K, other=0.0).to(tl.float32)
    tl.store(y + row * K + column, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    s, weight, dy, ds, dx, dweight, dbias, M, K, s_stride, dy_stride, ds_stride, eps,
    ADD: tl.constexpr, CENTRE: tl.constexpr, WEIGHT_GRADIENT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx (M, K), and each program's share (programs, K) of the weight's and bias's gradients.

    With g = dy w:  dx = (g - n mean(g n) - c mean(g)) / deviation  [+ ds with ADD].
    """
    column = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + column, mask=column < K, other=0.0).to(tl.float32)
    if WEIGHT_GRADIENT:
        dw = tl.zeros([ROWS, BLOCK], tl.float32)
        db = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(tl.program_id(0) * ROWS, M, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < M) & (column < K)
        value = tl.load(s + row * s_stride + column, mask=inside, other=0.0).to(tl.float32)
        if CENTRE:
            value = tl.where(inside, value - tl.sum(value, 1)[:, None] / K, 0.0)
        inverse = tl.rsqrt(tl.sum(value * value, 1) / K + eps)[:, None]
        normal = value * inverse
        out = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        if WEIGHT_GRADIENT:
            dw += out * normal
            db += out
        g = out * w
        gradient = g - normal * (tl.sum(g * normal, 1)[:, None] / K)
        if CENTRE:
            gradient -= tl.sum(g, 1)[:, None] / K
        gradient *= inverse
        if ADD:
            gradient += tl.load(ds + row * ds_stride + column, mask=inside, other=0.0).to(
                tl.float32
            )
        tl.store(dx + row * K + column, gradient.to(dx.dtype.element_ty), mask=inside)
    if WEIGHT_GRADIENT:
        share = tl.program_id(0) * K + column
        tl.store(dweight + share, tl.sum(dw, 0)[None, :], mask=column < K)
        tl.store(dbias + share, tl.sum(db, 0)[None, :], mask=column < K)


def tiling(columns: int) -> dict[str, int]:
    """ROWS, BLOCK and warps: 2048 values a program, more only where one row is wider."""
    block = triton.next_power_of_2(columns)
    warps = min(max(block // 512, 4), 16)
    return {"ROWS": max(2048 // block, 1), "BLOCK": block, "num_warps": warps}


class Norm(torch.autograd.Function):
    """(x, residual or None, weight, bias or None) -> y, or (y, s) where there is a residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centre: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        rows = rows_of(x)
        others = rows if residual is None else rows_of(residual)
        y = x.new_empty(x.shape)
        s = x if residual is None else x.new_empty(x.shape)
        (M, K), tiles = rows.shape, tiling(x.shape[-1])
        with device_of(x):
            forward_kernel[(triton.cdiv(M, tiles["ROWS"]),)](
                rows, others, weight, bias if bias is not None else weight, y, s, M, K,
                rows.stride(0), others.stride(0), eps,
                ADD=residual is not None, CENTRE=centre, HAS_BIAS=bias is not None, **tiles,
            )  # fmt: skip
        ctx.save_for_backward(s, weight)
        ctx.eps, ctx.centre = eps, centre
        ctx.added, ctx.has_bias = residual is not None, bias is not None
        ctx.set_materialize_grads(False)
        return y if residual is None else (y, s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, ds: Tensor | None = None) -> tuple[Any, ...]:
        if dy is None:
            return ds, ds, None, None, None, None
        s, weight = ctx.saved_tensors
        rows, out = rows_of(s), rows_of(dy)
        extra = out if ds is None else rows_of(ds)
        (M, K), tiles = rows.shape, tiling(s.shape[-1])
        programs = triton.cdiv(M, tiles["ROWS"])
        wanted = ctx.needs_input_grad[2] or (ctx.has_bias and ctx.needs_input_grad[3])
        if wanted:
            programs = min(programs, 4 * processors(s))
        dx = torch.empty_like(s, memory_format=torch.contiguous_format)
        shares = s.new_empty((2, programs, K) if wanted else (2, 1, 1), dtype=torch.float32)
        with device_of(s):
            backward_kernel[(programs,)](
                rows, weight, out, extra, dx, shares[0], shares[1], M, K,
                rows.stride(0), out.stride(0), extra.stride(0), ctx.eps,
                ADD=ds is not None, CENTRE=ctx.centre, WEIGHT_GRADIENT=wanted, **tiles,
            )  # fmt: skip
        dw, db = shares.sum(1).to(weight.dtype) if wanted else (None, None)
        others = (dx if ctx.added else None, dw, db if ctx.has_bias else None)
        return dx, *others, None, None
