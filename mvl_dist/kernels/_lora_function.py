"""Forward and backward of `lora_linear`, over matrix products of torch or of Triton.

The parts' adapters are put together: A (R, K) over one another, B (sum N, R) block by block and
scaled, so that all updates are one. With u = x A^T and v = dy B, both (M, R):

    y = x W^T + u B^T        dx = dy W + v A        dA = v^T x        dB = dy^T u
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvl_dist.kernels._runnable import rows_of
from mvl_dist.kernels.side_by_side import joined

FEWEST_RANKS = 16
"""The smallest operand of a tensor core; above it Triton wants powers of two."""


class Factor(NamedTuple):
    """One of the terms x w, and what it gives to the low-rank part: x p."""

    x: Tensor
    w: Tensor
    p: Tensor | None


def multiply_in_torch(
    out: Tensor, u: Tensor | None, factors: Sequence[Factor], q: Tensor | None, bias: Tensor | None
) -> None:
    """out = sum of x w + u q + bias, with u = sum of x p, into out (M, N) and u (M, R).

    The low-rank part comes first: cuBLAS reads it as it writes a product onto it.
    """
    start = 0
    if u is not None and q is not None:
        for number, (x, _, p) in enumerate(factors):
            assert p is not None  # as q is
            torch.addmm(u, x, p, beta=min(number, 1), out=u)
        _first(u, q, bias, out)
    else:
        _first(factors[0].x, factors[0].w, bias, out)
        start = 1
    for x, w, _ in factors[start:]:
        out.addmm_(x, w)


def _first(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, w, out=out)
    else:
        torch.addmm(bias, x, w, out=out)


class LoRALinear(torch.autograd.Function):
    """(x, packed, fused, scalings, *(weight, bias, a, b of each part)) -> a tuple of outputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: bool, fused: bool, scalings: Sequence[float], *flat: Any
    ) -> tuple[Tensor, ...]:
        weights, biases, a, b = (flat[kind::4] for kind in range(4))
        rows, sizes = rows_of(x), [len(weight) for weight in weights]
        all_a, all_b = _all_a(a), _all_b(b, sizes, scalings)
        y = x.new_empty((len(rows), sum(sizes)))
        u = None if all_a is None else x.new_empty((len(rows), len(all_a)))
        bias = _all_biases(biases, sizes)
        multiply = _multiply(fused)
        for columns, weight in _blocks(weights):
            factor = Factor(rows, weight.T, None if all_a is None else all_a.T)
            q = None if all_b is None else all_b[columns].T
            part_bias = None if bias is None else bias[columns]
            multiply(y[:, columns], u, [factor], q, part_bias)
        wanted = [ctx.needs_input_grad[4 + kind :: 4] for kind in range(4)]
        ctx.save_for_backward(
            rows if any(wanted[2]) else None, u if any(wanted[3]) else None, all_a, all_b, *weights
        )
        ctx.wanted, ctx.ranks = wanted, [0 if tensor is None else len(tensor) for tensor in a]
        ctx.shape, ctx.packed, ctx.scalings, ctx.fused = x.shape, packed, scalings, fused
        y = y.view(*x.shape[:-1], -1)
        return (y,) if packed else y.split(sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        x, u, all_a, all_b, *weights = ctx.saved_tensors
        sizes = [len(weight) for weight in weights]
        dys = [rows_of(dy) for dy in given]
        if ctx.packed:
            blocks = [(dys[0][:, columns], columns, weight) for columns, weight in _blocks(weights)]
            dys = list(dys[0].split(sizes, 1))
        else:  # one product each: to put their gradients side by side would cost a pass over them
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            blocks = [
                (dy, slice(start, start + len(w)), w)
                for dy, start, w in zip(dys, starts, weights, strict=True)
            ]
        dx, v = None, None
        if all_b is not None and (ctx.needs_input_grad[0] or x is not None):
            v = dys[0].new_empty((len(dys[0]), all_b.shape[1]))
        if ctx.needs_input_grad[0]:
            dx = dys[0].new_empty((len(dys[0]), weights[0].shape[1]))
            factors = [
                Factor(dy, w, None if all_b is None else all_b[columns])
                for dy, columns, w in blocks
            ]
            _multiply(ctx.fused)(dx, v, factors, all_a, None)
            dx = dx.view(ctx.shape)
        elif v is not None:
            for number, (dy, columns, _) in enumerate(blocks):
                torch.addmm(v, dy, all_b[columns], beta=min(number, 1), out=v)
        return dx, None, None, None, *_part_gradients(ctx, x, u, v, dys)


def _part_gradients(
    ctx: Any, x: Tensor | None, u: Tensor | None, v: Tensor | None, dys: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of (weight, bias, a, b) of each part."""
    da = v.T @ x if v is not None and x is not None else None
    gradients: list[Tensor | None] = []
    _, bias_wanted, a_wanted, b_wanted = ctx.wanted
    first = 0
    for number, (dy, rank) in enumerate(zip(dys, ctx.ranks, strict=True)):
        ranks = slice(first, first + rank)
        first += rank
        db = None
        if b_wanted[number]:
            assert u is not None
            db = (dy.T @ u[:, ranks]).mul_(ctx.scalings[number])
        gradients += [
            None,
            dy.sum(0) if bias_wanted[number] else None,
            da[ranks] if a_wanted[number] and da is not None else None,
            db,
        ]
    return gradients


def _multiply(fused: bool) -> Any:
    if fused:
        from mvl_dist.kernels._triton_lora_linear import multiply

        return multiply
    return multiply_in_torch


def _blocks(weights: Sequence[Tensor]) -> list[tuple[slice, Tensor]]:
    """Columns of y, and the weight that they come from: one for all where they lie side by side."""
    whole = joined(weights)
    blocks, start = [], 0
    for weight in [whole] if whole is not None else weights:
        blocks.append((slice(start, start + len(weight)), weight))
        start += len(weight)
    return blocks


def _all_a(a: Sequence[Tensor | None]) -> Tensor | None:
    """A (R, K) of all parts; rows that fill R up are 0."""
    given = [tensor for tensor in a if tensor is not None]
    if not given:
        return None
    ranks = sum(map(len, given))
    filling = given[0].new_zeros((_filled(ranks) - ranks, given[0].shape[1]))
    return torch.cat([*given, filling])


def _filled(ranks: int) -> int:
    return max(FEWEST_RANKS, 1 << (ranks - 1).bit_length())


def _all_b(
    b: Sequence[Tensor | None], sizes: Sequence[int], scalings: Sequence[float]
) -> Tensor | None:
    """scaling B of each part, on the diagonal of (sum of N_i, R)."""
    given = [tensor for tensor in b if tensor is not None]
    if not given:
        return None
    ranks = sum(tensor.shape[1] for tensor in given)
    together = given[0].new_zeros((sum(sizes), _filled(ranks)))
    row = rank = 0
    for tensor, size, scaling in zip(b, sizes, scalings, strict=True):
        if tensor is not None:
            place = together[row : row + size, rank : rank + tensor.shape[1]]
            torch.mul(tensor, scaling, out=place)
            rank += tensor.shape[1]
        row += size
    return together


def _all_biases(biases: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """(sum of N_i,), 0 for a part without."""
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    if len(biases) == 1:
        return given[0]
    pairs = zip(biases, sizes, strict=True)
    return torch.cat([given[0].new_zeros(n) if bias is None else bias for bias, n in pairs])
