"""A run whose settings were changed: an unfinished one is not forgotten, and one can be taken up.

A run is known by what decides its result, so the same command with one setting changed is another
run, in another folder, from the beginning. Who meant to go on learns it before hours are spent; who
means to go on with other settings says so with --resume-from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mvl_dist.config import RunConfig, described, from_plain
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, write_text_atomically

CHECKPOINTS, LAST, BEST = "checkpoints", "last.json", "best.safetensors"
DECIDING = ("data.", "model.", "optim.")
PLACES = ("data.store", "data.workers", "data.cache_gb")
# Other weights, or other cases to validate on, cannot go on from a checkpoint.
MAY_CHANGE = (
    "optim.",
    "model.dropout",
    "data.fraction",
    "data.augmentation",
    "data.leave_out",
    "data.foreground",
    "data.patches_per_case",
)
# A position within an epoch, and the best Dice so far, hold for these settings alone.
DECIDE_BATCHES = (
    *("optim.batch_size", "optim.seed"),
    *("data.fraction", "data.leave_out", "data.patches_per_case"),
)


def differences(
    before: RunConfig, now: RunConfig, reads: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Settings of a run that differ: dotted name -> (before, now); places and workers left out.

    Args:
        reads: fields of ModelConfig that the model uses.
    """
    first, second = (dict(_flat(described(config, reads))) for config in (before, now))
    return {
        key: (first[key], second[key])
        for key in first
        if key.startswith(DECIDING) and key not in PLACES and first[key] != second[key]
    }


def told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences as a person reads them."""
    return ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changed.items())


def unfinished(config: RunConfig, reads: Collection[str]) -> list[tuple[Path, RunConfig]]:
    """Unfinished runs of a config's task, model, fold and experiment with other settings.

    None where the config's own run has begun: that one goes on.
    """
    found = []
    parent = config.output / config.data.task
    for folder in sorted(parent.glob(f"{config.model.name}-fold{config.data.fold}-*")):
        try:
            about = json.loads((folder / CHECKPOINTS / LAST).read_text())
            other = _read(folder)
        except (OSError, json.JSONDecodeError, UserError):
            continue  # begun elsewhere, or nothing to go on from
        if other.experiment != config.experiment or ".before-" in folder.name:
            continue
        if not differences(other, config, reads):
            return []
        if not about["position"]["finished"]:
            found.append((folder, other))
    return found


def take_up(source: Path, folder: Path, config: RunConfig, reads: Collection[str]) -> int:
    """Give a new run the last checkpoint of another one; one that has begun keeps its own.

    Args:
        source: the other run's folder.
        folder: the new run's.

    Returns:
        The step that it goes on from, 0 if it has begun already.

    Raises:
        UserError: nothing to go on from, or settings changed with which its weights or its
            validation would mean nothing.
    """
    if (folder / CHECKPOINTS / LAST).exists():
        return 0
    try:
        about = json.loads((source / CHECKPOINTS / LAST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"--resume-from {source}: no checkpoint of a run there") from error
    changed = differences(_read(source), config, reads)
    refused = {key: both for key, both in changed.items() if not key.startswith(MAY_CHANGE)}
    if refused:
        raise UserError(
            f"--resume-from {source}: differs in {told(refused)}; only settings of optim, "
            "--dropout, --fraction, --augmentation, --leave-out, --foreground and "
            "--patches-per-case may change"
        )
    position = about["position"] | {"finished": False}
    if position["epoch"] >= config.optim.epochs:
        raise UserError(
            f"--resume-from {source}: has trained {position['epoch']} epochs; ask for more than "
            f"--epochs {config.optim.epochs}"
        )
    if any(key in DECIDE_BATCHES for key in changed):
        position |= {"batch": 0, "loss_sum": 0.0}
    _copy(source, folder, about["tag"])
    about = about | {"position": position}
    write_text_atomically(folder / CHECKPOINTS / LAST, json.dumps(about, indent=1))
    return int(position["step"])


def _copy(source: Path, folder: Path, tag: str) -> None:
    checkpoints = folder / CHECKPOINTS
    partial = checkpoints / f"{PARTIAL}{tag}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source / CHECKPOINTS / tag, partial)
        partial.rename(checkpoints / tag)
        if (source / BEST).exists():
            shutil.copy2(source / BEST, folder / f"{PARTIAL}{BEST}")
            (folder / f"{PARTIAL}{BEST}").rename(folder / BEST)
    except OSError as error:
        raise UserError(
            f"--resume-from {source}: its checkpoint cannot be copied to {folder} "
            f"({error.strerror or error})"
        ) from error


def _read(folder: Path) -> RunConfig:
    file = folder / "config.yaml"
    try:
        plain = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: not a run's folder (no readable config.yaml)") from error
    return from_plain(plain, RunConfig(), str(file))


def _flat(values: Mapping[str, Any], stem: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{stem}{key}.")
        elif stem + key == "model.donor.source" and Path(value).exists():
            yield stem + key, str(Path(value).absolute())  # as config.yaml has it
        else:
            yield stem + key, value
