"""A frozen linear in FP8 (e4m3), both directions; an option, never picked by itself.

    y = Q(x) Q(W)^T + bias        dx = Q(dy) Q(W)        (..., K) -> (..., N)

Q scales each row along the sum by its largest magnitude, so that it just fits: x and dy anew at
every call, W once, since it never changes, along K for forward and along N for backward. These are
two copies of one byte, as much memory as one in bfloat16. Products run at twice bfloat16's rate on
Hopper (sm_90); each has a relative error of about 4 %, as e4m3 has three bits behind the point.

A low-rank update is added in bfloat16 by the caller: y + scaling (x A^T) B^T.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvl_dist.kernels._runnable import rows_of, why_not

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
"""Of a row that is all 0."""


class Quantised(NamedTuple):
    """Rows of FP8 values (M, K) and the float32 factor (M, 1) of each."""

    values: Tensor
    scale: Tensor


class FrozenFP8(NamedTuple):
    """A weight W (N, K) in FP8: as it is, and transposed (K, N) with scales of its own."""

    weight: Quantised
    transposed: Quantised


def freeze(weight: Tensor) -> FrozenFP8:
    """Quantise a weight (N, K) of any floating dtype, once."""
    weight = weight.detach()
    return FrozenFP8(quantise(weight), quantise(weight.T))


def quantise(rows: Tensor) -> Quantised:
    """(M, K) -> FP8 by row: the largest magnitude of a row becomes 448, e4m3's largest."""
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scale = (precise.abs().amax(1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return Quantised((precise / scale).to(FP8).contiguous(), scale.float())


def reference(x: Tensor, frozen: FrozenFP8, bias: Tensor | None = None) -> Tensor:
    """As the text above, the FP8 values multiplied in x's precision; any device and dtype.

    Args:
        x: (..., K), any floating dtype.
        frozen: of W (N, K).
        bias: (N,) or None.
    """
    return _apply(x, frozen, bias, quantise, _multiply_widened)


def torch_fast(x: Tensor, frozen: FrozenFP8, bias: Tensor | None = None) -> Tensor:
    """As `reference`; in bfloat16, which is all that it writes, by torch._scaled_mm (also CPU)."""
    bf16 = x.dtype == torch.bfloat16
    return _apply(x, frozen, bias, quantise, _multiply if bf16 else _multiply_widened)


def triton_fused(x: Tensor, frozen: FrozenFP8, bias: Tensor | None = None) -> Tensor:
    """As `torch_fast`, with x and dy quantised in one pass each; eager takes about five."""
    from mvl_dist.kernels._triton_fp8 import quantise as fused

    return _apply(x, frozen, bias, fused, _multiply)


def cannot(x: Tensor, frozen: FrozenFP8, bias: Tensor | None = None) -> str:
    """Why Triton and torch's FP8 product cannot run these arguments; '' if they can."""
    n, k = frozen.weight.values.shape
    if x.dtype != torch.bfloat16:
        return f"torch's FP8 product with a scale a row writes bfloat16, not {x.dtype}"
    if n % 16 or k % 16:
        return f"a weight of {n} x {k}: torch's FP8 product wants multiples of 16"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return f"{torch.cuda.get_device_name(x.device)} is older than Hopper (sm_90)"
    reason = why_not(x, bias)
    if reason:
        return reason
    from mvl_dist.kernels._triton_fp8 import MOST_COLUMNS

    if max(n, k) > MOST_COLUMNS:
        return f"rows of {max(n, k)} values, at most {MOST_COLUMNS} fit a program"
    return ""


def _apply(x: Tensor, frozen: FrozenFP8, bias: Tensor | None, *ways: Any) -> Tensor:
    return _FP8Linear.apply(x, *frozen.weight, *frozen.transposed, bias, *ways)


def _multiply(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """a b^T of (M, K) and (N, K)."""
    return torch._scaled_mm(
        a.values, b.values.T, scale_a=a.scale, scale_b=b.scale.T, out_dtype=dtype
    )


def _multiply_widened(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    precision = torch.promote_types(dtype, torch.float32)
    left, right = (rows.values.to(precision) * rows.scale for rows in (a, b))
    return (left @ right.T).to(dtype)


class _FP8Linear(torch.autograd.Function):
    """Keeps no activation: W is frozen, and its gradient by x needs W alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor,
        transposed_scale: Tensor, bias: Tensor | None, quantise: Any, multiply: Any,
    ) -> Tensor:  # fmt: skip
        y = multiply(quantise(rows_of(x)), Quantised(weight, scale), x.dtype)
        if bias is not None:
            y += bias
        ctx.save_for_backward(transposed, transposed_scale)
        ctx.ways, ctx.shape = (quantise, multiply), x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Any, ...]:
        quantise, multiply = ctx.ways
        dy, dx = rows_of(given), None
        if ctx.needs_input_grad[0]:
            dx = multiply(quantise(dy), Quantised(*ctx.saved_tensors), dy.dtype).view(ctx.shape)
        dbias = dy.sum(0) if ctx.needs_input_grad[5] else None
        return dx, None, None, None, None, dbias, None, None
