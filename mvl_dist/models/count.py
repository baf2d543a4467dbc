"""Honest parameter counts, and which tensors are the donor's.

A model's parts are told by the first word of a parameter's name: `vit`, `mappers`, `llm`.
"""

from __future__ import annotations

from torch import nn


def donor_parameter_names(model: nn.Module) -> set[str]:
    """Names of the tensors that come from a donor unchanged: checkpoints leave them out."""
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith("llm.") and not parameter.requires_grad
    }


def parameter_report(model: nn.Module) -> dict[str, int]:
    """Parameters of each part, trainable and frozen.

    Keys: `trainable`, `frozen`, and `trainable_PART` / `frozen_PART` for PART in vit, mappers,
    llm. `trainable_llm` is the LoRA inside the block, which the paper's count leaves open.
    """
    report = {"trainable": 0, "frozen": 0}
    for part in ("vit", "mappers", "llm"):
        report |= {f"trainable_{part}": 0, f"frozen_{part}": 0}
    for name, parameter in model.named_parameters():
        kind = "trainable" if parameter.requires_grad else "frozen"
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        report[kind] += count
        part_key = f"{kind}_{name.split('.', 1)[0]}"
        report[part_key] = report.get(part_key, 0) + count
    return report
