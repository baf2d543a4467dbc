"""Full attention of many short heads, on the packed q, k, v that a ViT's one linear writes.

What limits it, for the ViT of this project (batch 4, 4,096 tokens, 4 heads of 16, 16 blocks):

    scores        4 x 4 x 4096^2 = 268 M a block, 4.29 G in all
    products      2 x 2 x 16 FLOP a score forward, 0.27 TFLOP; five such backward, 0.69 TFLOP
    exponentials  16 a cycle and multiprocessor: 132 x 16 x 1.76 GHz = 3.7 T/s on an H100 or H200,
                  1.2 ms for 4.29 G; 108 x 16 x 1.41 GHz = 2.4 T/s on an A100, 1.8 ms
    memory        0.13 GB of qkv and o forward, less than 0.1 ms

At head size 128 the products of a score take eight times as long as here and hide its exponential.
At 16 the exponential is the limit, and what stands beside it counts: a multiprocessor starts 128
lanes of instructions a cycle, so eight a score fit into the time of its exponential. Hence: no
padding to 32 or 64 (16 is one step of the matrix instruction m16n8k16), one multiply-add before the
exponential, row sums by the matrix unit, nothing masked but in the last step, no transposes.
Compiled for an A100 the loops have 5.6 instructions a score forward, 5.6 for dq and 7.1 for dk and
dv, for an H100 5.6, 6.5 and 8.0, and with dropout 10.3, 10.1 and 12.1 (10.4, 11.0 and 13.6):
python -m tests.kernels.attention_compiled counts them.

So the floor of this design is one exponential a score forward and two backward, where dq and dk
with dv are kernels of their own (`_triton_attention_backward` says why): 3.5 ms a training step on
an H100, 5.3 ms on an A100, less where the tuner picks a tile with a part of them on the FMA units.
With dropout instructions are the limit, a third to a half above that. On an H200 with dropout,
forward and backward of one block: 1.3 ms at batch 8 (torch 1.9), 0.86 at batch 1 (torch 0.36).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvl_dist.kernels._runnable import why_not

HEAD_SIZES = (16, 32, 64)


def reference(qkv: Tensor, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with the scores in memory, any floating dtype and device.

    Args:
        qkv: (B, T, 3, heads, D).
        dropout: probability to drop a probability; the kept ones are divided by 1 - dropout.
        seed: one int64; the same seed drops the same ones in `triton_fused`. Drawn if None.

    Returns:
        (B, T, heads x D), the heads side by side.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    p = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    if dropout:
        seed = draw_seed(qkv.device) if seed is None else seed
        p = p * keep_mask(seed, p.shape, dropout) / (1 - dropout)
    return (p @ v).transpose(1, 2).flatten(2)


def torch_fast(qkv: Tensor, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """torch's scaled_dot_product_attention; arguments as `reference`, but it draws its own seed.

    Raises:
        ValueError: a seed is given.
    """
    if seed is not None:
        raise ValueError("scaled_dot_product_attention takes no seed")
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)


def triton_fused(qkv: Tensor, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """The kernels; arguments as `reference`.

    qkv may have any strides but the last, which is 1. Keeps qkv, the output and one float32 a row
    and head for backward, and the seed, not the mask.

    Raises:
        ValueError: arguments that it cannot take; see `cannot`.
    """
    reason = cannot(qkv, dropout, seed)
    if reason:
        raise ValueError(f"short_head_attention: {reason}")
    if dropout and seed is None:
        seed = draw_seed(qkv.device)
    output: Tensor = ShortHeadAttention.apply(qkv, seed, dropout)
    return output


def cannot(qkv: Tensor, dropout: float = 0.0, seed: Tensor | None = None) -> str:
    """Why Triton cannot run these arguments; '' if it can."""
    if qkv.ndim != 5 or qkv.shape[2] != 3 or 0 in qkv.shape:
        return f"qkv is {tuple(qkv.shape)}, not (B, T, 3, heads, D)"
    if not 0 <= dropout < 1:
        return f"dropout {dropout} is not in [0, 1)"
    if qkv.shape[4] not in HEAD_SIZES:
        return f"heads of {qkv.shape[4]}, not of {' or '.join(map(str, HEAD_SIZES))}"
    if qkv.stride(4) != 1:
        return "the values of a head do not lie side by side"
    if qkv.stride(1) * qkv.shape[1] >= 2**31:
        return "a sample spans more than 2^31 values"
    return why_not(qkv)


def draw_seed(device: torch.device) -> Tensor:
    """One int64 from torch's generator of a device, and on it, so that a CUDA graph replays it."""
    return torch.randint(2**31, (1,), device=device)


def keep_mask(seed: Tensor, shape: torch.Size | tuple[int, ...], dropout: float) -> Tensor:
    """Which probabilities (B, heads, T, T) the kernels keep under a seed: a bool tensor.

    The kernels' hash in int64: a random word for each query of each head, and a step for each key.
    """
    batch, heads, rows, columns = shape
    pair = torch.arange(batch * heads, device=seed.device).view(batch, heads, 1, 1)
    row = torch.arange(rows, device=seed.device).view(-1, 1)
    column = torch.arange(columns, device=seed.device)
    word = _mix(_mix(seed + pair * 0x9E3779B1) + row)
    word = (word ^ (column * 0x85EBCA6B & 0xFFFFFFFF)) * 0x9E3779B1 & 0xFFFFFFFF
    return word < round((1 - dropout) * 2**32)


def _mix(word: Tensor) -> Tensor:
    """lowbias32, a hash of 32 bits (Wellons, 'Prospecting for hash functions', 2018)."""
    word = word & 0xFFFFFFFF
    word = (word ^ (word >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    word = (word ^ (word >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return word ^ (word >> 16)


class ShortHeadAttention(torch.autograd.Function):
    """The kernels under autograd; the gradient of qkv is written packed, as qkv is."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
        """qkv (B, T, 3, heads, D) -> (B, T, heads x D)."""
        from mvl_dist.kernels import _attention_launch

        q, k, v = qkv.unbind(2)
        o, lse = _attention_launch.forward(q, k, v, seed, dropout)
        ctx.save_for_backward(qkv, o, lse, seed)
        ctx.dropout = dropout
        return o.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of qkv."""
        from mvl_dist.kernels import _attention_launch

        qkv, o, lse, seed = ctx.saved_tensors
        d_qkv = qkv.new_empty(qkv.shape)
        (q, k, v), (dq, dk, dv) = qkv.unbind(2), d_qkv.unbind(2)
        do = do.reshape(o.shape)
        _attention_launch.backward(q, k, v, o, lse, do, seed, ctx.dropout, dq, dk, dv)
        return d_qkv, None, None
