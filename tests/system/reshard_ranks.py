"""Trains a small network in every ZeRO stage and precision, and goes on in every other.

accelerate launch ... tests/system/reshard_ranks.py save|load FOLDER
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from mvl_dist import checkpoint
from mvl_dist.checkpoint import Position

BATCH, BEFORE, AFTER = 4, 3, 3
KINDS = list(itertools.product((0, 1, 2, 3), (False, True)))


def network() -> torch.nn.Module:
    """Odd sizes, so that no partition is even; a frozen layer; a buffer."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(7, 13), torch.nn.GELU(), torch.nn.Linear(13, 13), torch.nn.Linear(13, 3)
    )
    layers[2].requires_grad_(False)
    layers.register_buffer("seen", torch.zeros(()))
    return layers


def engine_of(stage: int, bf16: bool) -> Any:
    model = network()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = {
        "train_batch_size": BATCH,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.Adam(trainable, lr=0.02), config=settings
    )
    return engine


def train(engine: Any, first: int, steps: int, bf16: bool) -> list[float]:
    """Global losses of steps, whose data depend on the step alone."""
    losses = []
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 7, generator=generator)[rank::size]
        y = torch.randn(BATCH, 3, generator=generator)[rank::size]
        dtype = torch.bfloat16 if bf16 else torch.float32
        loss = (engine(x.to(dtype)).float() - y).square().mean()
        engine.backward(loss)
        engine.step()
        engine.module.seen += 1
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total) / size)
    return losses


def folder_of(root: Path, stage: int, bf16: bool) -> Path:
    return root / f"zero{stage}-{'bf16' if bf16 else 'float32'}"


def save(root: Path) -> None:
    for stage, bf16 in KINDS:
        folder = folder_of(root, stage, bf16)
        folder.mkdir(exist_ok=True)
        engine = engine_of(stage, bf16)
        train(engine, 0, BEFORE, bf16)
        checkpoint.save(engine, folder, Position(step=BEFORE), "frozen", keep=1)
        losses = train(engine, BEFORE, AFTER, bf16)
        if dist.get_rank() == 0:
            (folder / "losses.json").write_text(json.dumps(losses))


def load(root: Path) -> None:
    rows = []
    for (stage, bf16), (new_stage, new_bf16) in itertools.product(KINDS, KINDS):
        folder = folder_of(root, stage, bf16)
        engine = engine_of(new_stage, new_bf16)
        with torch.no_grad():  # whatever is not loaded stays wrong
            for name, value in engine.module.named_buffers():
                value.fill_(-1)
                assert name == "seen"
        position = checkpoint.load(engine, folder, "frozen")
        seen = float(engine.module.seen)
        rows.append(
            {
                "from": folder.name,
                "to": folder_of(root, new_stage, new_bf16).name,
                "step": position.step,
                "seen": seen,
                "losses": train(engine, BEFORE, AFTER, new_bf16),
                "expected": json.loads((folder / "losses.json").read_text()),
            }
        )
    if dist.get_rank() == 0:
        (root / f"loaded-{dist.get_world_size()}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
    dist.barrier()
    dist.destroy_process_group()
