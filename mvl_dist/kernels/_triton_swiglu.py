"""SwiGLU in Triton: silu(gate) * up of packed rows, both derivatives in one pass."""

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

BLOCK = 1024
"""Columns a program: 8 values a thread of 4 warps, read and written 16 bytes at a time."""


@triton.jit
def forward_kernel(gate_up, out, width, stride, BLOCK: tl.constexpr):
    """out (M, width) of gate_up (M, 2 width), whose rows are `stride` apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(gate_up, dout, dgate_up, width, stride, dout_stride, BLOCK: tl.constexpr):
    """dgate = dout up silu'(gate), dup = dout silu(gate); silu' = p + silu (1 - p), p = sigmoid."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dout + row * dout_stride + column, mask=inside, other=0.0).to(tl.float32)
    p = tl.sigmoid(gate)
    silu = gate * p
    dgate = d * up * (p + silu * (1 - p))
    target = dgate_up + row * 2 * width + column
    tl.store(target, dgate.to(dgate_up.dtype.element_ty), mask=inside)
    tl.store(target + width, (d * silu).to(dgate_up.dtype.element_ty), mask=inside)


class SwiGLU(torch.autograd.Function):
    """(..., 2 width) -> (..., width); keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        rows, width = rows_of(gate_up), gate_up.shape[-1] // 2
        out = gate_up.new_empty((*gate_up.shape[:-1], width))
        with device_of(gate_up):
            forward_kernel[(len(rows), triton.cdiv(width, BLOCK))](
                rows, out, width, rows.stride(0), BLOCK=BLOCK
            )
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        rows, given, width = rows_of(gate_up), rows_of(dout), gate_up.shape[-1] // 2
        # Not over gate_up itself, which a second backward pass or another reader may want.
        dgate_up = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
        with device_of(gate_up):
            backward_kernel[(len(rows), triton.cdiv(width, BLOCK))](
                rows, given, dgate_up, width, rows.stride(0), given.stride(0), BLOCK=BLOCK
            )
        return dgate_up
