"""Rows to FP8 in Triton: one pass finds the largest magnitude, scales and rounds."""

# ruff: noqa: N803
# mypy: allow-untyped-defs, disable-error-code="import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvl_dist.kernels._runnable import device_of
from mvl_dist.kernels.fp8_linear import FP8, LARGEST, SMALLEST_SCALE, Quantised

MOST_COLUMNS = 32768
"""One row is at most this wide: 64 float32 registers a thread of 16 warps."""


@triton.jit
def quantise_kernel(
    x, values, scales, K, stride, largest, smallest_scale, BLOCK: tl.constexpr
):  # fmt: skip
    """values (M, K) in FP8 and scales (M, 1) of x (M, K), whose rows are `stride` apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < K
    value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0) / largest, smallest_scale)
    # Rounding of the division may exceed the largest FP8 number, which has no infinity above it.
    scaled = tl.minimum(tl.maximum(value / scale, -largest), largest)
    tl.store(values + row * K + column, scaled.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def tiling(columns: int) -> dict[str, int]:
    """A whole row a program; 8 values a thread or more."""
    block = triton.next_power_of_2(columns)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def quantise(rows: Tensor) -> Quantised:
    """(M, K) -> FP8 by row, as `fp8_linear.quantise`."""
    M, K = rows.shape
    values = torch.empty((M, K), dtype=FP8, device=rows.device)
    scales = torch.empty((M, 1), dtype=torch.float32, device=rows.device)
    with device_of(rows):
        quantise_kernel[(M,)](
            rows, values, scales, K, rows.stride(0), LARGEST, SMALLEST_SCALE, **tiling(K)
        )
    return Quantised(values, scales)
