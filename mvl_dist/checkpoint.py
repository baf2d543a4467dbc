"""Checkpoints: DeepSpeed's shards for resuming, one safetensors file for the best model.

    RUN/checkpoints/step-00000120/    DeepSpeed's files, renamed into place when all ranks are done
    RUN/checkpoints/last.json         which one to resume from, and the training's position
    RUN/best.safetensors              trainable and small frozen weights at the best validation

The donor's tensors are in neither: they are read from the donor and compared by checksum.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mvl_dist import reshard
from mvl_dist.distributed import gather_objects
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, write_text_atomically

FOLDER = "checkpoints"
LAST = "last.json"
BEST = "best.safetensors"
# Weights, Adam's two moments and a float32 master copy: at most 16 bytes a trainable parameter,
# doubled because DeepSpeed keeps weights and optimizer states in separate files.
BYTES_A_PARAMETER = 32


@dataclass(frozen=True)
class Position:
    """Where a training stands; everything else follows from the config and the weights.

    Attributes:
        epoch: epochs completed.
        batch: global batches completed of the epoch after them.
        step: optimizer steps taken.
        loss_sum: sum of the batches' losses of the unfinished epoch.
        best_dice: best validation Dice so far (-1: none yet), and its epoch.
        finished: the last epoch was completed.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_dice: float = -1.0
    best_epoch: int = -1
    finished: bool = False


def last_checkpoint(run: Path) -> dict[str, Any] | None:
    """Contents of `last.json`, or None where no checkpoint was completed."""
    try:
        return dict(json.loads((run / FOLDER / LAST).read_text()))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{run / FOLDER / LAST}: not JSON; delete the run's folder or start with --resume False"
        ) from error


def save(engine: Any, run: Path, position: Position, frozen_checksum: str, keep: int) -> Path:
    """Write a checkpoint on all ranks together, then point to it, then drop the oldest.

    Raises:
        UserError: too little room on the disk. The previous checkpoint stays the last one.
    """
    folder = run / FOLDER
    rank = dist.get_rank()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)
    needed = BYTES_A_PARAMETER * sum(
        _full_size(p) for p in engine.module.parameters() if p.requires_grad
    )
    dist.barrier()
    # Found out before writing: a rank that fails inside DeepSpeed leaves the others waiting.
    free = min(gather_objects([shutil.disk_usage(folder).free]))
    if free < needed:
        raise UserError(
            f"cannot write a checkpoint to {folder}: {free / 1e6:.0f} MB free of "
            f"{needed / 1e6:.0f} MB needed; make room and run the same command again: it resumes "
            "from the last checkpoint"
        )
    tag = f"step-{position.step:08d}"
    partial_tag = f"{PARTIAL}{tag}"
    engine.save_checkpoint(
        str(folder), tag=partial_tag, save_latest=False, exclude_frozen_parameters=True
    )
    dist.barrier()
    if rank == 0:
        final = folder / tag
        shutil.rmtree(final, ignore_errors=True)
        (folder / partial_tag).rename(final)
        about = {
            "tag": tag,
            "position": asdict(position),
            **_layout(engine),
            "frozen_checksum": frozen_checksum,
        }
        write_text_atomically(folder / LAST, json.dumps(about, indent=1))
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()
    return folder / tag


def load(engine: Any, run: Path, frozen_checksum: str) -> Position:
    """Bring engine and position back to the last checkpoint; a fresh start where there is none.

    One made by another number of ranks, ZeRO stage or precision is put together and shared anew.

    Raises:
        UserError: made with other frozen weights, or incomplete.
    """
    about = last_checkpoint(run)
    if about is None:
        return Position()
    where = run / FOLDER / about["tag"]
    if about["frozen_checksum"] != frozen_checksum:
        raise UserError(
            f"{where} was made with frozen weights {about['frozen_checksum']}, this run has "
            f"{frozen_checksum}: launch it as before, or start anew with --resume False"
        )
    layout = _layout(engine)
    before = {key: about.get(key, value) for key, value in layout.items()}
    if before != layout:
        _load_from_other_layout(engine, run, about["tag"], before, layout)
        return Position(**about["position"])
    try:
        loaded, _ = engine.load_checkpoint(
            str(run / FOLDER), tag=about["tag"], load_module_strict=False
        )
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{where} cannot be read ({type(error).__name__}): start anew with --resume False"
        ) from error
    if loaded is None:
        raise UserError(f"{where} is missing: start anew with --resume False")
    return Position(**about["position"])


def _layout(engine: Any) -> dict[str, Any]:
    """What decides how DeepSpeed cuts a checkpoint into files."""
    return {
        "world_size": dist.get_world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "precision": "bfloat16" if engine.bfloat16_enabled() else "float32",
    }


def _load_from_other_layout(
    engine: Any, run: Path, tag: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    universal = run / FOLDER / f"{PARTIAL}universal-{tag}"
    problem = ""
    if dist.get_rank() == 0:
        told = ", ".join(f"{key} {before[key]} -> {now[key]}" for key in now)
        print(f"{tag} goes on with another layout: {told}", flush=True)
        names = [n for n, p in engine.module.named_parameters() if p.requires_grad]
        try:
            shutil.rmtree(universal, ignore_errors=True)
            reshard.to_universal(run / FOLDER / tag, names, universal)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    (problem,) = set(filter(None, gather_objects([problem]))) or {""}
    if problem:
        raise UserError(
            f"{run / FOLDER / tag} cannot be put together ({problem}): launch as before, with "
            f"{before['world_size']} ranks and ZeRO-{before['zero_stage']}, or start anew with "
            "--resume False"
        )
    reshard.load_universal(engine, universal)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(universal, ignore_errors=True)


def _full_size(parameter: torch.nn.Parameter) -> int:
    # ZeRO-3 leaves an empty tensor behind and keeps the true size beside it.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def gather_weights(engine: Any, leave_out: set[str]) -> dict[str, torch.Tensor]:
    """Whole weights of the model on the CPU, on every rank, without the tensors in `leave_out`."""
    import deepspeed

    wanted = {n: p for n, p in engine.module.named_parameters() if n not in leave_out}
    partitioned = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(wanted.values()), enabled=partitioned):
        weights = {n: p.detach().to("cpu", copy=True).contiguous() for n, p in wanted.items()}
    saved = engine.module.state_dict().keys()  # a buffer need not be among them
    buffers = {n: b for n, b in engine.module.named_buffers() if n in saved - leave_out}
    return weights | {n: b.detach().to("cpu", copy=True).contiguous() for n, b in buffers.items()}


def save_best(engine: Any, run: Path, leave_out: set[str], metadata: Mapping[str, str]) -> None:
    """Replace `best.safetensors` by the engine's weights now; all ranks must call it."""
    weights = gather_weights(engine, leave_out)
    if dist.get_rank() == 0:
        write_safetensors(run / BEST, weights, metadata)
    dist.barrier()


def write_safetensors(
    path: Path, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file in one step.

    Raises:
        UserError: the disk is full; the file that was there stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        save_file(dict(weights), partial, metadata=dict(metadata))
        partial.chmod(0o644)  # safetensors makes it the owner's alone; a group shares its runs
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path} ({' '.join(str(error).split())}): make room and run the same "
            "command again: it resumes from the last checkpoint"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_best(run: Path, model: torch.nn.Module, donor_names: set[str]) -> dict[str, str]:
    """Load `best.safetensors` into a plain model; return the file's metadata.

    Raises:
        UserError: no such file, a damaged one, or one of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = run / BEST
    if not path.exists():
        raise UserError(f"{path}: no trained model there; train it first with 'mvl train'")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); train the run again") from error
    # By the parameters' own names: a module that stands in two places has two in a state dict.
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    known &= model.state_dict().keys()
    missing = sorted(known - weights.keys() - donor_names)
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if missing or unexpected:
        raise UserError(
            f"{path} belongs to another model: {len(missing)} tensors missing, "
            f"{len(unexpected)} unknown (first: {(missing + unexpected)[0]})"
        )
    return metadata
