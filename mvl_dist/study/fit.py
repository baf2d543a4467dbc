"""How many GPUs a run needs for its memory, by the calculator of `mvl plan-memory`."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from mvl_dist.errors import UserError
from mvl_dist.memory import Layers, fits_into, rank_memory
from mvl_dist.study.cost import Shape, shape_of
from mvl_dist.study.grid import StudyRun
from mvl_dist.tasks import TASKS


@functools.lru_cache(maxsize=256)
def _layers(shape: Shape) -> Layers:
    from mvl_dist.models.layers import layers_of  # imports torch

    return layers_of(shape.model, shape.grid, shape.in_channels)


def least_gpus(
    run: StudyRun, settings: Mapping[str, Any], gpu_gib: float, gpus_per_node: int
) -> int:
    """The fewest GPUs (1, 2, 4, ...) of a node that a run fits into.

    Args:
        settings: the launcher's DeepSpeed config.
        gpu_gib: memory of a GPU.

    Raises:
        UserError: it does not fit a node.
    """
    layers = _layers(shape_of(run.config, TASKS.get(run.config.data.task)))
    batch = run.config.optim.batch_size
    gpus = 1
    while gpus <= gpus_per_node:
        need = rank_memory(layers, settings, gpus, max(batch, gpus))
        if batch % gpus == 0 and fits_into(need, gpu_gib):
            return gpus
        gpus *= 2
    raise UserError(
        f"{run} does not fit {gpus_per_node} GPUs of {gpu_gib:.0f} GiB under ZeRO-"
        f"{settings['zero_optimization']['stage']}: see 'mvl plan-memory', choose a --launcher "
        "with deepspeed_configs/zero3.json, or train it on several nodes with jobs/train.sbatch"
    )


def memory_of_gpus_gib() -> float:
    """Memory of the smallest GPU here, as nvidia-smi has it; 0.0 without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    sizes = [float(line) for line in done.stdout.split() if line.replace(".", "").isdigit()]
    return min(sizes, default=0.0) / 1024
