"""`mvl plan-memory`: what a run needs of each GPU under every ZeRO stage.

mvl plan-memory --donor llama-3.1-8b --donor-layers all --gpus 8 32
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mvl_dist.config import ModelConfig, Shape3D
from mvl_dist.errors import UserError
from mvl_dist.memory import (
    GIB,
    RESERVED_GIB,
    RankMemory,
    fits_into,
    rank_memory,
    starting_host_bytes,
)
from mvl_dist.models import check_model

CONFIGS = Path(__file__).resolve().parent.parent / "deepspeed_configs"


@dataclass(frozen=True)
class MemoryArguments:
    """Memory of each GPU in a run, for every DeepSpeed config of deepspeed_configs/."""

    model: ModelConfig = field(default_factory=ModelConfig)
    grid: Shape3D = (128, 128, 128)
    """Voxels D, H, W of the input."""
    batch_size: int = 4
    """Cases a step over all ranks together; raised to the number of GPUs where it is below."""
    gpus: tuple[int, ...] = (1, 8, 32)
    """Numbers of GPUs."""
    gpus_a_node: int = 8
    """GPUs of a node, whose memory the run is built in before it is partitioned."""
    gpu_gib: float = 80.0
    """Memory of a GPU in GiB (an A100 has 80 or 40)."""
    configs: Annotated[tuple[Path, ...], tyro.conf.arg(name="deepspeed")] = ()
    """DeepSpeed configs (default: all bf16 ones of deepspeed_configs/)."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl plan-memory`; 1 if the run fits nowhere."""
    arguments = tyro.cli(
        MemoryArguments,
        args=list(argv),
        prog="mvl plan-memory",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    check_model(arguments.model, arguments.grid)
    if arguments.model.frozen_precision != "model":
        raise UserError(
            f"--frozen-precision {arguments.model.frozen_precision}: weights are counted in the "
            "model's precision here: leave it out (int8 needs half for the block's linears, fp8 "
            "as much as bf16)"
        )
    if any(gpus < 1 for gpus in arguments.gpus):
        raise UserError(f"--gpus {min(arguments.gpus)}: must be above 0")
    files = arguments.configs or tuple(sorted(CONFIGS.glob("zero[0-9].json"))) + tuple(
        sorted(CONFIGS.glob("zero3-*.json"))
    )
    from mvl_dist.models.layers import layers_of  # imports torch

    layers = layers_of(arguments.model, arguments.grid)
    print(
        f"{arguments.model.name}: {sum(layers.trainable):,} trainable, {sum(layers.frozen):,} "
        f"frozen parameters; {layers.activation_bytes / GIB:.1f} GiB of activations a sample"
    )
    print(
        f"{'GiB a GPU':16}{'GPUs':>5}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'buckets':>9}"
        f"{'gathered':>10}{'activations':>13}{'all':>8}{'host':>7}"
    )
    fits = False
    for file in files:
        settings = _settings(file)
        for gpus in arguments.gpus:
            batch = max(arguments.batch_size, gpus)
            need = rank_memory(layers, settings, gpus, batch)
            good = fits_into(need, arguments.gpu_gib)
            fits |= good
            print(_row(file.stem, gpus, need) + ("" if good else "   too much"))
    start = starting_host_bytes(layers, min(max(arguments.gpus), arguments.gpus_a_node)) / GIB
    print(
        f"a GPU has {arguments.gpu_gib:g} GiB, of which {RESERVED_GIB:g} are left to CUDA, NCCL "
        f"and the allocator; a node that starts the run needs up to {start:.0f} GiB of its own"
    )
    return int(not fits)


def _settings(file: Path) -> dict[str, object]:
    try:
        settings = dict(json.loads(file.read_text()))
        int(settings["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--deepspeed {file}: no DeepSpeed config with a ZeRO stage") from error
    return settings


def _row(name: str, gpus: int, need: RankMemory) -> str:
    sizes = (need.weights, need.gradients, need.optimizer, need.buckets, need.gathered)
    cells = (*sizes, need.activations)
    widths = (9, 11, 11, 9, 10, 13)
    shown = "".join(f"{cell / GIB:{w}.2f}" for cell, w in zip(cells, widths, strict=True))
    return f"{name:16}{gpus:5d}{shown}{need.gpu / GIB:8.2f}{need.host / GIB:7.2f}"
