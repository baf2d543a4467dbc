"""LayerNorm of x + residual in one pass: what stands between the parts of a ViT block.

    s = x + residual    y = (s - mean(s)) / sqrt(var(s) + eps) * w + b      (B, T, K) -> (y, s)

s goes on as the residual stream. The kernel keeps s alone for backward.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mvl_dist.kernels._runnable import why_not


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(normed, s), both of x's shape (..., K); s is x itself where there is no residual.

    Args:
        x: (..., K), any floating dtype.
        weight: (K,), x's dtype.
        bias: (K,), x's dtype.
        eps: added to the variance.
        residual: x's shape and dtype.
    """
    s = x if residual is None else x + residual
    centred = s - s.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias, s


def torch_fast(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference`, by torch's own LayerNorm."""
    s = x if residual is None else x + residual
    return F.layer_norm(s, weight.shape, weight, bias, eps), s


def triton_fused(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference`, one kernel forward and one backward, float32 inside."""
    from mvl_dist.kernels._triton_norm import Norm

    if residual is None:
        return Norm.apply(x, None, weight, bias, eps, True), x
    return Norm.apply(x, residual, weight, bias, eps, True)


def cannot(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> str:
    """Why Triton cannot run these arguments; '' if it can."""
    reason = why_not(x, weight, bias, residual)
    if reason:
        return reason
    from mvl_dist.kernels._triton_norm import MOST_COLUMNS

    if x.shape[-1] > MOST_COLUMNS:
        return f"rows of {x.shape[-1]} values, at most {MOST_COLUMNS} fit a program"
    return ""
