"""A model handed to DeepSpeed: Adam, its learning rate, and what DeepSpeed then really runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mvl_dist.config import OptimConfig
from mvl_dist.errors import UserError


def learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant as in the paper."""
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    return optim.lr * min(1.0, (step + 1) / warmup_steps) if warmup_steps else optim.lr


def adam(parameters: Sequence[torch.nn.Parameter], lr: float, device: str) -> torch.optim.Adam:
    """Adam as the paper has it, in one kernel a step on a GPU.

    On a CPU torch's own choice: its fused Adam rounds in another way, and runs that are there would
    go on along another curve.

    Args:
        device: kind of device that the training runs on, `cuda` or `cpu`.
    """
    return torch.optim.Adam(parameters, lr=lr, fused=True if device == "cuda" else None)


def prepare_engine(accelerator: Accelerator, model: torch.nn.Module, optim: OptimConfig) -> Any:
    """Hand a model to DeepSpeed with Adam over its trainable parameters.

    Raises:
        UserError: DeepSpeed runs another ZeRO stage than its config asks for.
    """
    plugin = accelerator.state.deepspeed_plugin
    settings = plugin.deepspeed_config
    # Both, because Accelerate leaves what it filled in for the run before in a shared config.
    settings["train_micro_batch_size_per_gpu"] = optim.batch_size // accelerator.num_processes
    settings["train_batch_size"] = optim.batch_size
    settings["gradient_clipping"] = optim.max_grad_norm
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adam(trainable, optim.lr, accelerator.device.type)
    engine, _ = accelerator.prepare(model, optimizer)
    asked, got = settings["zero_optimization"]["stage"], running_stage(engine)
    if asked != got:
        raise UserError(f"DeepSpeed runs ZeRO stage {got}, its config asks for {asked}")
    return engine


def running_stage(engine: Any) -> int:
    """ZeRO stage by what DeepSpeed built, not by the config that it was given back.

    `engine.zero_optimization_stage()` only repeats the config, so it could never disagree with it.
    """
    optimizer = engine.optimizer
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    if "DeepSpeedZeroOptimizer_Stage3" in kinds:
        return 3
    if "DeepSpeedZeroOptimizer" in kinds:
        return 2 if optimizer.partition_gradients else 1
    if "BF16_Optimizer" in kinds:  # what DeepSpeed takes for stages 0 and 1 in bf16
        return min(int(engine.zero_optimization_stage()), 1)
    return 0


def dtype_name(engine: Any) -> str:
    """Precision that DeepSpeed runs the model in: bfloat16 or float32."""
    return "bfloat16" if engine.bfloat16_enabled() else "float32"
