"""A Llama-like layer put together from the fused operations, over transformers' own parameters.

    x -> RMSNorm -> q, k, v as one product -> attention -> o
    + x -> RMSNorm -> gate, up as one product -> SwiGLU -> down -> + the sum

Of SwiGLU's wide activations its input alone is kept, and not even that with `recompute_mlp`.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from mvl_dist.kernels import dispatch, gqa_attention, lora_linear, rms_norm, swiglu
from mvl_dist.models import adapted
from mvl_dist.models.donors.llama_recomputed import recomputed


def why_not(block: Any) -> str:
    """Why a block's layers cannot run this way, '' if they can."""
    for layer in block.layers:
        if layer.mlp.config.hidden_act != "silu":
            return f"its activation is {layer.mlp.config.hidden_act}, not silu"
        for group in _groups(layer):
            reason = adapted.why_not(group)
            if reason:
                return reason
    return ""


def _groups(layer: Any) -> tuple[list[Any], ...]:
    """Linears that share their input."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    )


def forward(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The block's layers and its final RMSNorm: (B, T, H) -> (B, T, H)."""
    branch: torch.Tensor | None = None
    for layer in block.layers:
        qkv, o, gate_up, down = map(adapted.parts, _groups(layer))
        normed, hidden = _norm(layer.input_layernorm, hidden, branch)
        mixed = _attend(layer.self_attn, *dispatch.run(lora_linear, normed, qkv))
        (branch,) = dispatch.run(lora_linear, mixed, o)
        normed, hidden = _norm(layer.post_attention_layernorm, hidden, branch)
        branch = _mlp(normed, gate_up, down, block.recompute_mlp)
    return _norm(block.norm, hidden, branch)[0]


def _mlp(normed: torch.Tensor, gate_up: list[Any], down: list[Any], again: bool) -> torch.Tensor:
    """The MLP: (B, T, H) -> (B, T, H); `again`: keeping `normed` alone."""
    if again and down[0].a is not None:  # an adapter keeps its input
        return recomputed(_mlp, normed, gate_up, down, False)
    wide = recomputed(_wide, normed, gate_up) if again else _wide(normed, gate_up)
    (branch,) = dispatch.run(lora_linear, wide, down)
    return cast(torch.Tensor, branch)


def _wide(normed: torch.Tensor, gate_up: list[Any]) -> torch.Tensor:
    packed = dispatch.run(lora_linear, normed, gate_up, packed=True)
    return cast(torch.Tensor, dispatch.run(swiglu, packed))


def _norm(
    norm: Any, hidden: torch.Tensor, branch: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of the residual stream with a branch added, and that sum."""
    if branch is None:
        return dispatch.run(rms_norm, hidden, norm.weight, norm.variance_epsilon)
    return dispatch.run(rms_norm, branch, norm.weight, norm.variance_epsilon, hidden)


def _attend(attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q (B, T, heads x head size), k and v of fewer heads -> (B, T, heads x head size)."""
    q, k, v = (x.unflatten(-1, (-1, attention.head_dim)) for x in (q, k, v))
    if hasattr(attention, "q_norm"):  # Qwen3
        q, k = attention.q_norm(q), attention.k_norm(k)
    return dispatch.run(gqa_attention, q, k, v).flatten(2)
