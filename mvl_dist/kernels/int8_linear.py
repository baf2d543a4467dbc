"""A frozen linear whose weight is kept in int8: half the memory of bfloat16, on every GPU.

    y = x (s q)^T + bias        dx = dy (s q)        (..., K) -> (..., N)

with W = s q by row, q (N, K) of -127..127. The weight is widened to x's dtype for each product, so
the speed is that of the product itself and a pass over W: an option for memory (Ampere has no FP8),
never picked by itself. There is no Triton kernel: a fused one would have to beat cuBLAS at these
sizes to save that pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvl_dist.kernels._runnable import rows_of


class FrozenInt8(NamedTuple):
    """A weight W (N, K) as int8 values and a float32 factor (N, 1) of each row."""

    values: Tensor
    scale: Tensor


def freeze(weight: Tensor) -> FrozenInt8:
    """Quantise a weight (N, K) of any floating dtype, once: the largest of a row becomes 127."""
    weight = weight.detach().float()
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
    return FrozenInt8((weight / scale).round().to(torch.int8), scale)


def widened(frozen: FrozenInt8, dtype: torch.dtype) -> Tensor:
    """The weight (N, K) that the int8 values stand for."""
    precision = torch.promote_types(dtype, torch.float32)
    return (frozen.values * frozen.scale.to(precision)).to(dtype)


def reference(x: Tensor, frozen: FrozenInt8, bias: Tensor | None = None) -> Tensor:
    """(..., K) -> (..., N) in x's dtype.

    Args:
        x: (..., K), any floating dtype.
        frozen: of W (N, K).
        bias: (N,) or None.
    """
    return torch.nn.functional.linear(x, widened(frozen, x.dtype), bias)


def torch_fast(x: Tensor, frozen: FrozenInt8, bias: Tensor | None = None) -> Tensor:
    """As `reference`, but the widened weight is made again in backward rather than kept."""
    return _Int8Linear.apply(x, *frozen, bias)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, scale)
        return torch.nn.functional.linear(x, widened(FrozenInt8(values, scale), x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dx = dy @ widened(FrozenInt8(*ctx.saved_tensors), dy.dtype)
        dbias = rows_of(dy).sum(0) if ctx.needs_input_grad[3] else None
        return dx, None, None, dbias
