"""Frozen linears with low-rank updates that read the same x, as one: q, k, v, or gate and up.

    y_i = x W_i^T + bias_i + scaling_i (x A_i^T) B_i^T            (B, T, K) -> (B, T, N_i), each i

W is frozen: backward has no weight gradient, and keeps x only where an adapter needs it, once for
all parts. Weights that lie side by side in memory (`side_by_side.py`) are one matrix product.

The product with W runs at the speed of the tensor cores, and there cuBLAS is hard to beat. What
PEFT loses is around it (counted here, not timed): it reads or writes y seven times where one would
do, and x once more for each adapter. `torch_fast` writes the low-rank part first and lets cuBLAS
add its product onto it: three times, two of them inside the product. `triton_fused` reads x and
writes y once, in one kernel whose tensor cores do R / TILE_N more, 6 % at rank 16 on Hopper: it
should pay where memory is the limit (the mappers of 64 to 4096 and back) and must be measured
elsewhere, which `--kernels auto` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvl_dist.kernels._lora_function import LoRALinear
from mvl_dist.kernels._runnable import why_not


class Part(NamedTuple):
    """One linear: tensors where PEFT's layer has them; without a and b it has no update.

    Attributes:
        weight: base_layer.weight (N, K), frozen.
        bias: base_layer.bias (N,) or None; may be trained.
        a: lora_A.weight (r, K) or None.
        b: lora_B.weight (N, r) or None.
        scaling: alpha / r.
    """

    weight: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scaling: float = 1.0


def reference(x: Tensor, parts: Sequence[Part], packed: bool = False) -> Any:
    """Each part's y (..., N_i) in a tuple or, `packed`, all side by side (..., sum of N_i).

    Args:
        x: (..., K), any floating dtype, that of all parts.
        parts: at least one.
        packed: whether one reader wants all of it, as SwiGLU does of gate and up.
    """
    outputs = []
    for weight, bias, a, b, scaling in parts:
        y = x @ weight.T
        if bias is not None:
            y = y + bias
        if a is not None and b is not None:
            y = y + scaling * (x @ a.T @ b.T)
        outputs.append(y)
    return torch.cat(outputs, -1) if packed else tuple(outputs)


def torch_fast(x: Tensor, parts: Sequence[Part], packed: bool = False) -> Any:
    """As `reference`, by matrix products of torch alone (cuBLAS); on CPU and GPU, any dtype.

    Raises:
        ValueError: a weight that wants a gradient, or a without b.
    """
    return _apply(x, parts, packed, fused=False)


def triton_fused(x: Tensor, parts: Sequence[Part], packed: bool = False) -> Any:
    """As `reference`, x read once for a product and its low-rank update, in both directions.

    Raises:
        ValueError: a weight that wants a gradient, or a without b.
    """
    return _apply(x, parts, packed, fused=True)


def cannot(x: Tensor, parts: Sequence[Part], packed: bool = False) -> str:
    """Why Triton cannot run these arguments; '' if it can."""
    if any(part.weight.requires_grad for part in parts):
        return "a weight is trained, and this is for frozen ones"
    return why_not(x, *(tensor for part in parts for tensor in part[:4]))


def _apply(x: Tensor, parts: Sequence[Part], packed: bool, fused: bool) -> Any:
    for part in parts:
        if part.weight.requires_grad:
            raise ValueError("lora_linear has no gradient for its weights: they must be frozen")
        if (part.a is None) != (part.b is None):
            raise ValueError("lora_linear: a part has one of a and b, and needs both or neither")
    flat = [tensor for part in parts for tensor in part[:4]]
    outputs = LoRALinear.apply(x, packed, fused, tuple(part.scaling for part in parts), *flat)
    return outputs[0] if packed else outputs
