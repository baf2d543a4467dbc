"""LayerNorm and a linear in Triton: rows normalised in registers, then multiplied.

    c = x - mean(x)    h = c / sqrt(mean(c^2) + eps)    n = h gamma + beta    y = n W^T + bias

    g = (dy W) gamma   dx = (g - mean(g) - h mean(g h)) / sqrt(mean(c^2) + eps)

All gradients of weights follow from H = dy^T h (N, K) and s = sum dy (N,), which is less to sum
over the rows than each of them:

    dW = H gamma + s beta    dbias = s    dgamma = sum_N W H    dbeta = sum_N W s

A program holds ROWS rows of x and walks over y's or dy's columns, TILE at a time. Its H and s go to
a place of their own, which torch adds up: two runs give the same bits.
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

from mvl_dist.kernels._runnable import device_of, rows_of
from mvl_dist.kernels._triton_attention import dot


@triton.jit
def normalised(x, row, column, inside, K, stride, eps):
    """h (ROWS, BLOCK_K) in float32, 0 outside, and each row's 1 / deviation (ROWS, 1)."""
    value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(inside, value - tl.sum(value, 1)[:, None] / K, 0.0)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / K + eps)[:, None]
    return value * inverse, inverse


@triton.jit
def forward_kernel(
    x, gamma, beta, weight, bias, y, M, K, N, stride, eps,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """y (M, N) of x (M, K), whose rows may lie apart."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, left = tl.arange(0, ROWS)[:, None], (M - first).to(tl.int32)
    column = tl.arange(0, BLOCK_K)[None, :]
    inside = (row < left) & (column < K)
    h, _ = normalised(x + first * stride, row, column, inside, K, stride, eps)
    y += first * N
    scale = tl.load(gamma + column, mask=column < K, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=column < K, other=0.0).to(tl.float32)
    n = (h * scale + shift).to(y.dtype.element_ty)
    down = tl.arange(0, BLOCK_K)[:, None]
    for tile in range(TILES):
        out = tile * TILE + tl.arange(0, TILE)[None, :]
        w = tl.load(weight + out * K + down, mask=(out < N) & (down < K), other=0.0)
        product = dot(n, w, tl.zeros([ROWS, TILE], tl.float32))
        product += tl.load(bias + out, mask=out < N, other=0.0).to(tl.float32)
        tl.store(y + row * N + out, product.to(y.dtype.element_ty), mask=(row < left) & (out < N))


@triton.jit
def backward_kernel(
    x, gamma, weight, dy, dx, shares, M, K, N, stride, dy_stride, eps,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """dx (M, K), and each program's share of H and s, one after the other."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, left = tl.arange(0, ROWS)[:, None], (M - first).to(tl.int32)
    column = tl.arange(0, BLOCK_K)[None, :]
    inside = (row < left) & (column < K)
    h, inverse = normalised(x + first * stride, row, column, inside, K, stride, eps)
    rounded = h.to(dx.dtype.element_ty)
    dy += first * dy_stride
    shares += tl.program_id(0).to(tl.int64) * (N * K + N)
    dn = tl.zeros([ROWS, BLOCK_K], tl.float32)
    for tile in range(TILES):
        out = tile * TILE + tl.arange(0, TILE)
        across, down = out[None, :], out[:, None]
        within = (down < N) & (column < K)
        given = tl.load(dy + row * dy_stride + across, mask=(row < left) & (across < N), other=0.0)
        w = tl.load(weight + down * K + column, mask=within, other=0.0)
        dn = dot(given, w, dn)
        product = dot(tl.trans(given), rounded, tl.zeros([TILE, BLOCK_K], tl.float32))
        tl.store(shares + down * K + column, product, mask=within)
        tl.store(shares + N * K + out, tl.sum(given.to(tl.float32), 0), mask=out < N)
    g = dn * tl.load(gamma + column, mask=column < K, other=0.0).to(tl.float32)
    gradient = g - tl.sum(g, 1)[:, None] / K - h * (tl.sum(g * h, 1)[:, None] / K)
    dx += first * K
    tl.store(dx + row * K + column, (gradient * inverse).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def weights_kernel(
    sums, gamma, beta, weight, dweight, dbias, dgamma, dbeta, K, N,
    BLOCK_K: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The weights' gradients from H and s; one program."""
    column = tl.arange(0, BLOCK_K)
    scale = tl.load(gamma + column, mask=column < K, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=column < K, other=0.0).to(tl.float32)
    scales = tl.zeros([BLOCK_K], tl.float32)
    shifts = tl.zeros([BLOCK_K], tl.float32)
    for tile in range(TILES):
        out = tile * TILE + tl.arange(0, TILE)
        place = out[:, None] * K + column[None, :]
        within = (out < N)[:, None] & (column < K)[None, :]
        product = tl.load(sums + place, mask=within, other=0.0)
        total = tl.load(sums + N * K + out, mask=out < N, other=0.0)
        tl.store(dbias + out, total.to(dbias.dtype.element_ty), mask=out < N)
        result = product * scale[None, :] + total[:, None] * shift[None, :]
        tl.store(dweight + place, result.to(dweight.dtype.element_ty), mask=within)
        w = tl.load(weight + place, mask=within, other=0.0).to(tl.float32)
        scales += tl.sum(w * product, 0)
        shifts += tl.sum(w * total[:, None], 0)
    tl.store(dgamma + column, scales.to(dgamma.dtype.element_ty), mask=column < K)
    tl.store(dbeta + column, shifts.to(dbeta.dtype.element_ty), mask=column < K)


def tiling(weight_shape: tuple[int, int], dtype: torch.dtype) -> dict[str, int]:
    """Tiles and warps for a weight (N, K): as many rows as spill no register on an A100."""
    n, k = weight_shape
    rows, tile = (32, 16) if dtype == torch.float32 else (128, 32)
    return {
        **{"ROWS": rows, "BLOCK_K": max(triton.next_power_of_2(k), 16)},
        **{"TILE": tile, "TILES": triton.cdiv(n, tile), "num_warps": 8},
    }


class NormLinear(torch.autograd.Function):
    """(x, gamma, beta, eps, weight, bias) -> y; keeps x and the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        rows, (N, K) = rows_of(x), weight.shape
        weight = weight.contiguous()
        y = x.new_empty((*x.shape[:-1], N))
        tiles = tiling((N, K), x.dtype)
        with device_of(x):
            forward_kernel[(triton.cdiv(len(rows), tiles["ROWS"]),)](
                rows, gamma, beta, weight, bias, y, len(rows), K, N, rows.stride(0), eps, **tiles
            )  # fmt: skip
        ctx.save_for_backward(x, gamma, beta, weight)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, gamma, beta, weight = ctx.saved_tensors
        rows, given, (N, K) = rows_of(x), rows_of(dy), weight.shape
        tiles = tiling((N, K), x.dtype)
        programs = triton.cdiv(len(rows), tiles["ROWS"])
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        shares = x.new_empty((programs, N * K + N), dtype=torch.float32)
        gradients = [weight.new_empty(shape) for shape in ((N, K), N, K, K)]
        with device_of(x):
            backward_kernel[(programs,)](
                rows, gamma, weight, given, dx, shares, len(rows), K, N,
                rows.stride(0), given.stride(0), ctx.eps, **tiles,
            )  # fmt: skip
            del tiles["ROWS"]
            weights_kernel[(1,)](shares.sum(0), gamma, beta, weight, *gradients, K, N, **tiles)
        dweight, dbias, dgamma, dbeta = gradients
        return dx, dgamma, dbeta, None, dweight, dbias
