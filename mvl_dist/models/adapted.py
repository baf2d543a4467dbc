"""Frozen linears with PEFT's adapters, as `kernels.lora_linear` takes them.

Parameters stay where transformers and PEFT have them, under their names: checkpoints, counts and
checksums are the same whichever way a model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mvl_dist.kernels import lora_linear
from mvl_dist.kernels.side_by_side import lay_side_by_side
from mvl_dist.models.frozen import EightBitLinear


def has_adapter(linear: nn.Module) -> bool:
    """Whether PEFT has put an adapter around a linear."""
    return _base(linear) is not linear


def why_not(linears: Sequence[nn.Module]) -> str:
    """Why linears cannot run as one fused product with their adapters, '' if they can."""
    for linear in linears:
        base = _base(linear)
        if isinstance(base, EightBitLinear):
            return f"its weights are held in {base.precision}, which their own modules multiply"
        if not isinstance(base, nn.Linear):
            return f"{type(base).__name__} is no linear of torch"
        if hasattr(base.weight, "ds_id"):
            return "ZeRO-3 partitions its weights (ZeRO-0 to 2 do not)"
        if base.weight.requires_grad:
            return "its weights are trained, the kernels take them as frozen"
        reason = "" if base is linear else _adapter_not_plain(linear)
        if reason:
            return reason
    return ""


def _adapter_not_plain(linear: Any) -> str:
    active = list(linear.active_adapters)
    if len(active) != 1 or active[0] not in linear.lora_A or linear.lora_variant:
        return "it has more than one plain adapter"
    if linear.merged or linear.disable_adapters:
        return "its adapter is merged or disabled"
    if not isinstance(linear.lora_dropout[active[0]], nn.Identity):
        return "its adapter has dropout"
    return "" if linear.lora_B[active[0]].bias is None else "its adapter has a bias"


def parts(linears: Sequence[nn.Module]) -> list[lora_linear.Part]:
    """What `lora_linear` takes; `why_not` must have been asked.

    The weights of several are moved into one memory the first time, and again after a move of the
    model to another device or dtype.
    """
    bases = [_base(linear) for linear in linears]
    lay_side_by_side([base.weight for base in bases])
    return [_part(linear, base) for linear, base in zip(linears, bases, strict=True)]


def _part(linear: Any, base: Any) -> lora_linear.Part:
    if linear is base:
        return lora_linear.Part(base.weight, base.bias)
    name = linear.active_adapters[0]
    a, b = linear.lora_A[name].weight, linear.lora_B[name].weight
    return lora_linear.Part(base.weight, base.bias, a, b, float(linear.scaling[name]))


def _base(linear: Any) -> Any:
    return getattr(linear, "base_layer", linear)
