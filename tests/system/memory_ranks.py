"""Live tensors of each rank in a training with a donor of many layers; JSON on standard output.

    python -m torch.distributed.run --standalone --nproc-per-node 2 \\
        -m tests.system.memory_ranks DONOR CONFIG.json
"""

import gc
import json
import os
import sys
from pathlib import Path

import deepspeed
import psutil
import torch
import torch.distributed as dist

from mvl_dist.config import DonorConfig, ModelConfig
from mvl_dist.models import build_model
from mvl_dist.models.donors import load_donor

GRID = (16, 16, 16)


def model_config(donor: str) -> ModelConfig:
    return ModelConfig(
        depth=2, llm_position=2, dropout=0.0, donor=DonorConfig(source=donor, layers="all")
    )


def live_bytes() -> int:
    """Bytes of all storages that some tensor holds."""
    gc.collect()
    found: dict[int, int] = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type != "meta":
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def main(source: str, settings_file: str) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    before = psutil.Process().memory_full_info().uss
    settings = json.loads(Path(settings_file).read_text())
    settings["train_batch_size"] = dist.get_world_size()
    del settings["train_micro_batch_size_per_gpu"]
    torch.manual_seed(0)
    donor = load_donor(source, "all", seed=0)
    model = build_model(model_config(source), 1, 1, GRID, donor=donor)
    del donor
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    del model, trainable, optimizer
    image = torch.randn(1, 1, *GRID, dtype=next(engine.module.parameters()).dtype)
    for _ in range(2):
        engine.backward(engine(image).float().square().mean())
        engine.step()
    report = {
        "rank": dist.get_rank(),
        "stage": engine.zero_optimization_stage(),
        "live_bytes": live_bytes(),
        "resident_bytes": psutil.Process().memory_full_info().uss - before,
    }
    rows: list[dict[str, int] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, report)
    if dist.get_rank() == 0:
        print("REPORT", json.dumps(rows), flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
