"""A matrix product and its low-rank update in Triton, in one pass over x.

    out (M, N) = x (M, K) w (K, N) + u q (R, N) + bias        u (M, R) = x p (K, R)

A program makes one tile of out. It multiplies each tile of x with w's and with p's: R / TILE_N
more work for the tensor cores, and no second pass over x or out.
"""

# ruff: noqa: N803
# mypy: allow-untyped-defs, disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvl_dist.kernels._lora_function import Factor
from mvl_dist.kernels._runnable import device_of


@triton.jit
def multiply_kernel(
    x, w, p, q, bias, out, u, M, N, K, x_row, w_row, w_column, out_row,
    p_row, p_column, q_row, q_column,
    LOW_RANK: tl.constexpr, R: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of out, and of u where it stands in the first column; ADD adds to both.

    GROUP tiles below one another are made before those beside them: they share w's tiles in L2.
    """
    rows_of_tiles = tl.cdiv(M, TILE_M)
    in_group = GROUP * tl.cdiv(N, TILE_N)
    first_row = (tl.program_id(0) // in_group) * GROUP
    height = tl.minimum(rows_of_tiles - first_row, GROUP)
    tile_m = first_row + (tl.program_id(0) % in_group) % height
    tile_n = (tl.program_id(0) % in_group) // height

    row = (tile_m * TILE_M + tl.arange(0, TILE_M)).to(tl.int64)[:, None]
    column = (tile_n * TILE_N + tl.arange(0, TILE_N)).to(tl.int64)[None, :]
    rank = tl.arange(0, R)[None, :]
    depth = tl.arange(0, TILE_K)
    x_tile = x + row * x_row + depth[None, :]
    w_tile = w + depth[:, None].to(tl.int64) * w_row + column * w_column
    p_tile = p + depth[:, None] * p_row + rank * p_column
    product = tl.zeros([TILE_M, TILE_N], tl.float32)
    low = tl.zeros([TILE_M, R], tl.float32)
    for start in range(0, K, TILE_K):
        left = K - start
        values = tl.load(x_tile, mask=(row < M) & (depth[None, :] < left), other=0.0)
        others = tl.load(w_tile, mask=(depth[:, None] < left) & (column < N), other=0.0)
        product = tl.dot(values, others, product, input_precision=PRECISION)
        if LOW_RANK:
            others = tl.load(p_tile, mask=depth[:, None] < left, other=0.0)
            low = tl.dot(values, others, low, input_precision=PRECISION)
            p_tile += TILE_K * p_row
        x_tile += TILE_K
        w_tile += TILE_K * w_row

    if LOW_RANK:
        rounded = low.to(out.dtype.element_ty)
        others = tl.load(
            q + tl.arange(0, R)[:, None] * q_row + column * q_column, mask=column < N, other=0.0
        )
        product = tl.dot(rounded, others, product, input_precision=PRECISION)
        if tile_n == 0:
            u_tile = u + row * R + rank
            if ADD:
                low += tl.load(u_tile, mask=row < M, other=0.0).to(tl.float32)
            tl.store(u_tile, low.to(u.dtype.element_ty), mask=row < M)
    if HAS_BIAS:
        product += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)
    inside = (row < M) & (column < N)
    out_tile = out + row * out_row + column
    if ADD:
        product += tl.load(out_tile, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_tile, product.to(out.dtype.element_ty), mask=inside)


def tiling(rows: int, columns: int, dtype: torch.dtype, capability: int) -> dict[str, int]:
    """Tiles, warps and stages; `capability` is 80 for an A100 and 90 for an H100.

    A tile of out is as large as its float32 sums and u's fit the registers: on Hopper, whose
    tensor cores read their operands from shared memory, 128 x 256, before it 128 x 128.
    """
    if dtype == torch.float32:
        m, n, k, warps, stages = 64, 64, 32, 8, 3
    else:
        m, n, k, warps, stages = 128, 256 if capability >= 90 else 128, 64, 8, 3
    return {
        "TILE_M": min(m, max(16, triton.next_power_of_2(rows))),
        "TILE_N": min(n, max(16, triton.next_power_of_2(columns))),
        "TILE_K": k,
        "GROUP": 8,
        "num_warps": warps,
        "num_stages": stages,
    }


def multiply(
    out: Tensor, u: Tensor | None, factors: Sequence[Factor], q: Tensor | None, bias: Tensor | None
) -> None:
    """out = sum of x w + u q + bias, with u = sum of x p, into out (M, N) and u (M, R)."""
    M, N = out.shape
    tiles = tiling(M, N, out.dtype, _capability(out))
    exact = torch.get_float32_matmul_precision() == "highest"
    grid = (triton.cdiv(M, tiles["TILE_M"]) * triton.cdiv(N, tiles["TILE_N"]),)
    for number, (x, w, p) in enumerate(factors):
        low_rank = q is not None
        left, right, low = (p, q, u) if low_rank else (w, w, out)
        assert left is not None
        assert right is not None
        assert low is not None
        with device_of(out):
            multiply_kernel[grid](
                x, w, left, right, out if bias is None else bias, out, low, M, N, x.shape[1],
                x.stride(0), w.stride(0), w.stride(1), out.stride(0),
                left.stride(0), left.stride(1), right.stride(0), right.stride(1),
                LOW_RANK=low_rank, R=low.shape[1] if low_rank else 16,
                HAS_BIAS=bias is not None and number == 0, ADD=number > 0,
                PRECISION="ieee" if exact else "tf32", **tiles,
            )  # fmt: skip


def _capability(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor
