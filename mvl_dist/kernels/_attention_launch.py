"""Run the attention kernels: block sizes, buffers, and one call a direction.

Imports Triton: an operation imports this module when its kernel is asked for.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from mvl_dist.kernels import _triton_attention, _triton_attention_backward
from mvl_dist.kernels._runnable import device_of

PAD = 128
"""lse and delta have T rounded up to this many rows, so that a block of them needs no mask."""


def _tile(block: int, step: int, steps: int, fma: int, warps: int, stages: int) -> triton.Config:
    sizes = {"BLOCK": block, "STEP": step, "STEPS": steps, "FMA_STEPS": fma}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


# The tuner chooses among these on the GPU itself; the first ones spill no register on either
# architecture (tests/kernels/test_attention_compiled.py). Short heads: rows enough for the keys to
# be read from L2 at half a byte a score, and registers for 12 to 16 warps a multiprocessor, so that
# some compute exponentials while others multiply. FMA_STEPS 1 of 4 balances the special function
# unit against instruction issue; not for dropout or `keys`, which issue more.
TILES = {
    ("forward", "short"): [
        _tile(128, 64, 1, 0, 4, 2),
        _tile(128, 64, 4, 1, 4, 2),
        _tile(64, 128, 1, 0, 4, 2),
        _tile(128, 128, 1, 0, 8, 2),
        _tile(64, 64, 4, 1, 2, 2),
    ],
    ("queries", "short"): [
        _tile(64, 64, 1, 0, 4, 2),
        _tile(64, 64, 4, 1, 4, 2),
        _tile(128, 32, 4, 0, 4, 2),
        _tile(128, 64, 4, 1, 4, 2),
        _tile(128, 64, 1, 0, 4, 2),
    ],
    ("keys", "short"): [
        _tile(128, 32, 1, 0, 4, 2),
        _tile(128, 64, 1, 0, 4, 2),
        _tile(128, 32, 4, 0, 4, 2),
        _tile(64, 64, 1, 0, 4, 2),
        _tile(64, 32, 2, 0, 2, 2),
    ],
    ("forward", "long"): [
        _tile(128, 64, 1, 0, 8, 2),
        _tile(128, 64, 1, 0, 8, 3),
        _tile(64, 64, 1, 0, 4, 2),
        _tile(128, 128, 1, 0, 8, 2),
    ],
    ("queries", "long"): [
        _tile(64, 64, 1, 0, 4, 2),
        _tile(128, 32, 1, 0, 8, 3),
        _tile(128, 64, 1, 0, 8, 2),
    ],
    ("keys", "long"): [
        _tile(64, 32, 1, 0, 4, 2),
        _tile(128, 32, 1, 0, 8, 2),
        _tile(64, 64, 1, 0, 4, 2),
    ],
    # Three TF32 products for each, for comparisons rather than for speed.
    ("forward", "float32"): [_tile(64, 32, 1, 0, 4, 2)],
    ("queries", "float32"): [_tile(64, 16, 1, 0, 4, 2)],
    ("keys", "float32"): [_tile(64, 16, 1, 0, 4, 2)],
}


def kind_of(size: int, dtype: torch.dtype) -> str:
    """Which of `TILES` heads of a size in a precision have."""
    return "float32" if dtype == torch.float32 else "long" if size > 32 else "short"


def _tuned(name: str, kind: str) -> Any:
    kernel = getattr(_triton_attention, name, None) or getattr(_triton_attention_backward, name)
    tiles = TILES[name, kind] if torch.cuda.is_available() else TILES[name, kind][:1]
    key = ["T", "kv_heads" if name == "keys" else "heads", "D", "DROPOUT"]
    return triton.autotune(tiles, key, cache_results=True)(kernel)


KERNELS = {key: _tuned(*key) for key in TILES}


def forward(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention's output (B, T, heads, D) and lse (B, heads, rows).

    Args:
        q: (B, T, heads, D), last stride 1; k and v alike, with as many heads or a divisor of them.
        seed: one int64 on the device; None without dropout.
    """
    batch, length, heads, size = q.shape
    rows = triton.cdiv(length, PAD) * PAD
    o = q.new_empty(batch, length, heads, size)
    lse = q.new_empty(batch, heads, rows, dtype=torch.float32)
    _launch(
        "forward", batch * heads, rows,
        (q, k, v, o, lse, seed, *_strides(q, k, v), length, rows, heads),
        (*_rates(size, dropout),), q, k,
    )  # fmt: skip
    return o, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor,
    seed: Tensor | None, dropout: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Fill dq, dk and dv; dk and dv have the same strides."""
    batch, length, heads, size = q.shape
    rows, kv_heads = lse.shape[2], k.shape[2]
    do = do.contiguous()
    minus_delta = torch.empty_like(lse)
    hashes = torch.empty_like(lse, dtype=torch.int32) if dropout else None
    scale, limit, rate = _rates(size, dropout)
    numbers = scale, limit, rate, 1 / (math.sqrt(size) * rate)
    _launch(
        "queries", batch * heads, rows,
        (q, k, v, o, do, lse, minus_delta, hashes, dq, seed, *_strides(q, k, v, dq),
         length, rows, heads), numbers, q, k,
    )  # fmt: skip
    _launch(
        "keys", batch * kv_heads, rows,
        (q, k, v, do, lse, minus_delta, hashes, dk, dv, *_strides(q, k, v, dk),
         length, rows, kv_heads), numbers, q, k,
    )  # fmt: skip


def _launch(
    name: str, pairs: int, rows: int,
    tensors: tuple[Any, ...], numbers: tuple[float, ...], q: Tensor, k: Tensor,
) -> None:  # fmt: skip
    size = q.shape[3]
    with device_of(q):
        KERNELS[name, kind_of(size, q.dtype)][lambda sizes: (rows // sizes["BLOCK"] * pairs,)](
            *tensors,
            *numbers,
            GROUP=q.shape[2] // k.shape[2],
            D=size,
            DROPOUT=numbers[2] < 1,
        )


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _rates(size: int, dropout: float) -> tuple[float, int, float]:
    """Scale of the scores for a base-2 exponential, limit of the hash, and rate that is kept."""
    limit = round((1 - dropout) * 2**32)
    as_int32 = (limit + 2**31) % 2**32 - 2**31
    return math.log2(math.e) / math.sqrt(size), as_int32, limit / 2**32
