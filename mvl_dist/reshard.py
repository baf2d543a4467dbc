"""A checkpoint of another number of ranks, ZeRO stage or precision, brought into an engine.

DeepSpeed's universal checkpoint puts the shards together, one folder a parameter; each rank then
takes its part of every tensor through DeepSpeed's own access to partitioned parameters. What goes
on is the same training: float32 weights, both moments of Adam, and its step.

    UNIVERSAL/NAME/fp32.pt, exp_avg.pt, exp_avg_sq.pt    whole tensors of a trainable parameter
    UNIVERSAL/rest.pt                                    Adam's step, the model's buffers
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WEIGHT, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
REST = "rest.pt"
# Where DeepSpeed's optimizers hold a rank's float32 partitions: stages 1 and 2, 3, and bf16's 1.
FLAT_PARTITIONS = (
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
)


def to_universal(checkpoint: Path, names: Sequence[str], output: Path) -> None:
    """Put a checkpoint of any stage together, in one process without ranks.

    Args:
        checkpoint: one `step-*` folder.
        names: the trainable parameters, in the model's order.
        output: folder to make.

    Raises:
        OSError, RuntimeError, KeyError: a file is missing or damaged.
    """
    # Under ZeRO-3 every rank writes a model file; buffers are whole in each.
    model = _load(min(checkpoint.glob("*model_states.pt")))
    optimizers = sorted(checkpoint.glob("*_optim_states.pt"))
    if optimizers:
        _merge_shards(checkpoint, output)
        step = _adam_step(_load(optimizers[0])["optimizer_state_dict"])
    else:
        step = _copy_unpartitioned(model, names, output)
    buffers = {name: value for name, value in model["module"].items() if name not in set(names)}
    torch.save({"step": step, "buffers": buffers}, output / REST)


def _copy_unpartitioned(model: Mapping[str, Any], names: Sequence[str], output: Path) -> int:
    """Stage 0: torch's optimizer, whole; in bf16 beside float32 copies of the parameters."""
    optimizer = model["optimizer"]
    states = optimizer.get("optimizer_state_dict", optimizer)["state"]
    groups = optimizer.get("fp32_groups")
    weights = groups[0] if groups else [model["module"][name] for name in names]
    for number, (name, weight) in enumerate(zip(names, weights, strict=True)):
        (output / name).mkdir(parents=True)
        torch.save(weight.detach(), output / name / f"{WEIGHT}.pt")
        for kind in MOMENTS:
            torch.save(states[number][kind], output / name / f"{kind}.pt")
    return int(states[0]["step"])


def read_tensor(universal: Path, name: str, kind: str, shape: Sequence[int]) -> torch.Tensor:
    """A whole tensor of a universal checkpoint on the CPU, float32."""
    found = _load(universal / name / f"{kind}.pt")
    tensor = found["param"] if isinstance(found, dict) else found
    return tensor.float().reshape(tuple(shape))


def read_buffers(universal: Path) -> Mapping[str, torch.Tensor]:
    """The model's buffers by name."""
    return dict(_load(universal / REST)["buffers"])


def load_universal(engine: Any, universal: Path) -> None:
    """Give every rank of an engine its part; all ranks must call it."""
    rest = _load(universal / REST)
    _make_moments(engine.optimizer, rest["step"])
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        partitioned = hasattr(parameter, "ds_id")
        shape = parameter.ds_shape if partitioned else parameter.shape
        tensors = {
            kind: read_tensor(universal, name, kind, shape).to(engine.device)
            for kind in (WEIGHT, *MOMENTS)
        }
        _set_weight(parameter, tensors[WEIGHT], partitioned)
        if partitioned:
            _set_stage_3(parameter, tensors)
        elif hasattr(parameter, "_hp_mapping"):
            _set_stages_1_and_2(parameter, tensors)
        else:
            _set_stage_0(engine.optimizer, parameter, tensors, rest["step"])
    with torch.no_grad():
        for name, buffer in engine.module.named_buffers():
            if name in rest["buffers"]:
                buffer.copy_(rest["buffers"][name])


def _make_moments(optimizer: Any, step: int) -> None:
    """Adam's state, which a fresh DeepSpeed optimizer only has after its first step."""
    for partitions in FLAT_PARTITIONS:
        for flat in getattr(optimizer, partitions, ()):
            optimizer.optimizer.state[flat] = {
                "step": torch.tensor(float(step)),
                **{kind: torch.zeros_like(flat.data) for kind in MOMENTS},
            }
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _set_stage_0(
    optimizer: Any, parameter: torch.nn.Parameter, tensors: Mapping[str, torch.Tensor], step: int
) -> None:
    """torch's optimizer itself, or in bf16 DeepSpeed's around it with float32 copies."""
    master = parameter
    if hasattr(optimizer, "fp32_groups"):
        pairs = zip(optimizer.fp16_groups[0], optimizer.fp32_groups[0], strict=True)
        (master,) = (copy for original, copy in pairs if original is parameter)
        master.data.copy_(tensors[WEIGHT])
        optimizer = optimizer.optimizer
    optimizer.state[master] = {
        "step": torch.tensor(float(step)),
        **{kind: tensors[kind] for kind in MOMENTS},
    }


def _set_stages_1_and_2(parameter: torch.nn.Parameter, tensors: Mapping[str, torch.Tensor]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, tensors[WEIGHT])
    for kind in MOMENTS:
        safe_set_full_optimizer_state(parameter, tensors[kind], kind)


def _set_stage_3(parameter: torch.nn.Parameter, tensors: Mapping[str, torch.Tensor]) -> None:
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    # Not safe_set_full_*: that reads past the end where ranks do not divide a tensor.
    size, rank = safe_get_local_fp32_param(parameter).numel(), dist.get_rank()
    mine = {}
    for kind, tensor in tensors.items():
        part = tensor.flatten()[size * rank : size * (rank + 1)]
        mine[kind] = torch.nn.functional.pad(part, (0, size - part.numel()))
    safe_set_local_fp32_param(parameter, mine[WEIGHT])
    for kind in MOMENTS:
        safe_set_local_optimizer_state(parameter, mine[kind], kind)


def _set_weight(parameter: torch.nn.Parameter, weight: torch.Tensor, partitioned: bool) -> None:
    """Set the copy that the forward pass reads, which may be bfloat16."""
    import deepspeed

    gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned)
    with gathered, torch.no_grad():
        if not partitioned or dist.get_rank() == 0:
            parameter.copy_(weight)


def _adam_step(optimizer: Mapping[str, Any]) -> int:
    # Stages 1 and 2 keep Adam's state under the first name, stage 3 under the second.
    inner = optimizer.get("base_optimizer_state") or optimizer["optimizer_state_dict"]
    return int(next(iter(inner["state"].values()))["step"])


def _merge_shards(checkpoint: Path, output: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    merged = output.with_name(f"{output.name}-merged")
    with _silence():
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(checkpoint),
                output_folder=str(merged),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    (merged / "zero").rename(output)
    shutil.rmtree(merged)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _load(path: Path) -> Any:
    # The files hold DeepSpeed's own classes; they were written by this run.
    return torch.load(path, map_location="cpu", weights_only=False)
