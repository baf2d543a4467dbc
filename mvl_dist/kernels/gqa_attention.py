"""Grouped-query full attention: several query heads share one head of keys and values.

For a language model's block inside a segmentation network: no mask, no rotary embedding, heads of
64 or 128 (Llama-3.1-8B: 32 of queries and 8 of keys, 128 each). Keys and values are read where they
are, never repeated in memory: in the forward pass a query head reads its group's, and in the
backward pass one program adds up the gradients of a group in its registers.

At this head size the products are the limit: 4 x 128 FLOP a score forward, of 2.1 G scores at
batch 4 and 4,096 tokens 1.10 TFLOP; seven more of 256 FLOP backward, two of which a kernel with
atomics would save.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvl_dist.kernels._runnable import why_not

HEAD_SIZES = (64, 128)


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with the scores in memory, any floating dtype and device.

    Args:
        q: (B, T, heads, D).
        k: (B, T, kv_heads, D), kv_heads a divisor of heads: query head h reads head
            h // (heads / kv_heads).
        v: as k.

    Returns:
        (B, T, heads, D).
    """
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, *(x.repeat_interleave(group, 2) for x in (k, v))))
    p = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (p @ v).transpose(1, 2)


def torch_fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention with `enable_gqa`; arguments as `reference`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)


def triton_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernels; arguments as `reference`, with any strides but the last, which is 1.

    Keeps q, k, v, the output and one float32 a row and head for backward.

    Raises:
        ValueError: arguments that it cannot take; see `cannot`.
    """
    reason = cannot(q, k, v)
    if reason:
        raise ValueError(f"gqa_attention: {reason}")
    output: Tensor = GQAAttention.apply(q, k, v)
    return output


def cannot(q: Tensor, k: Tensor, v: Tensor) -> str:
    """Why Triton cannot run these arguments; '' if it can."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or 0 in (*q.shape, *k.shape):
        return f"{shapes}, not (B, T, heads, D) and twice (B, T, kv_heads, D)"
    if (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]) or q.shape[2] % k.shape[2]:
        return f"{shapes} do not belong together"
    if q.shape[3] not in HEAD_SIZES:
        return f"heads of {q.shape[3]}, not of {' or '.join(map(str, HEAD_SIZES))}"
    if any(x.stride(3) != 1 for x in (q, k, v)):
        return "the values of a head do not lie side by side"
    if any(x.stride(1) * x.shape[1] >= 2**31 for x in (q, k, v)):
        return "a sample spans more than 2^31 values"
    return why_not(q, k, v)


class GQAAttention(torch.autograd.Function):
    """The kernels under autograd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, T, heads, D), k and v (B, T, kv_heads, D) -> (B, T, heads, D)."""
        from mvl_dist.kernels import _attention_launch

        o, lse = _attention_launch.forward(q, k, v, None, 0.0)
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v."""
        from mvl_dist.kernels import _attention_launch

        q, k, v, o, lse = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        _attention_launch.backward(q, k, v, o, lse, do, None, 0.0, dq, dk, dv)
        return dq, dk, dv
