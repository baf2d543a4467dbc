"""RMSNorm of x + residual in one pass: what stands between the parts of a Llama-like layer.

    s = x + residual    y = s / sqrt(mean(s^2) + eps) * w        (B, T, K) -> (y, s)

s goes on as the residual stream. RMSNorm of transformers keeps a float32 copy of s for backward;
the kernel keeps s itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mvl_dist.kernels._runnable import why_not


def reference(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(normed, s), both of x's shape (..., K); s is x itself where there is no residual.

    Args:
        x: (..., K), any floating dtype.
        weight: (K,), x's dtype.
        eps: added to the mean square.
        residual: x's shape and dtype.
    """
    s = x if residual is None else x + residual
    return s * (s.square().mean(-1, keepdim=True) + eps).rsqrt() * weight, s


def torch_fast(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference`, by torch's own RMSNorm: its float32 inside, one kernel on CUDA."""
    s = x if residual is None else x + residual
    return F.rms_norm(s, weight.shape, weight, eps), s


def triton_fused(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference`, one kernel forward and one backward, float32 inside.

    The weight gets a gradient only where it asks for one: in the frozen block it doesn't.
    """
    from mvl_dist.kernels._triton_norm import Norm

    if residual is None:
        return Norm.apply(x, None, weight, None, eps, False), x
    return Norm.apply(x, residual, weight, None, eps, False)


def cannot(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> str:
    """Why Triton cannot run these arguments; '' if it can."""
    reason = why_not(x, weight, residual)
    if reason:
        return reason
    from mvl_dist.kernels._triton_norm import MOST_COLUMNS

    if x.shape[-1] > MOST_COLUMNS:
        return f"rows of {x.shape[-1]} values, at most {MOST_COLUMNS} fit a program"
    return ""
