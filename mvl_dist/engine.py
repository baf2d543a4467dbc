"""The training loop: Accelerate + DeepSpeed steps, validation, checkpoints, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mvl_dist import checkpoint
from mvl_dist.augment import PRESETS, Anatomy
from mvl_dist.checkpoint import Position
from mvl_dist.data import Batch, CaseDataset, RankBatches, region_masks
from mvl_dist.device_batches import on_device
from mvl_dist.distributed import sums_and_largest
from mvl_dist.errors import UserError
from mvl_dist.loading import BatchLoader, timed
from mvl_dist.losses import training_loss
from mvl_dist.optimizing import dtype_name, learning_rate, running_stage
from mvl_dist.patches import PatchDataset
from mvl_dist.plan import Plan, data_checksum
from mvl_dist.progress import progress_bar
from mvl_dist.run_cache import node_cache
from mvl_dist.stopping import StopRequest
from mvl_dist.store import read_manifest
from mvl_dist.tracking import AnyTracker
from mvl_dist.validating import validate
from mvl_dist.watchdog import Watchdog


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Attributes:
        interrupted: name of the signal that stopped it, '' if it ran to its end.
    """

    position: Position
    zero_stage: int
    interrupted: str = ""


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """All ranks agreed to stop here; carries the position to save."""

    def __init__(self, position: Position) -> None:
        super().__init__()
        self.position = position


class Trainer:
    """One run on one rank; every method that talks to other ranks says so."""

    def __init__(
        self,
        plan: Plan,
        engine: Any,
        folder: Path,
        tracker: AnyTracker,
        donor_names: set[str],
        frozen_checksum: str,
    ) -> None:
        self.plan, self.engine, self.folder, self.tracker = plan, engine, folder, tracker
        self.donor_names, self.frozen_checksum = donor_names, frozen_checksum
        self.optim = plan.config.optim
        self.activation = plan.config.model.activation
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = engine.device
        self.dtype = getattr(torch, dtype_name(engine))
        data = plan.config.data
        self.reader = plan.reader.through(node_cache(plan), plan.manifest)
        training = self._training_cases()
        self.batches = RankBatches(
            len(training),
            self.optim.batch_size,
            self.rank,
            self.world_size,
            self.optim.seed,
        )
        self.loader = BatchLoader(training, self.batches, data.workers)
        self.validation = self._cases(plan.split.validation)
        self.augment = PRESETS[data.augmentation]
        self.anatomy = Anatomy.of(
            plan.manifest.task, plan.spacing_mm, continues=data.resolution == "spaced"
        )
        self.steps_per_epoch = self.batches.batches_per_epoch
        self.watchdog = Watchdog(self.rank, self.world_size)

    def _cases(self, cases: Sequence[str]) -> CaseDataset:
        data = self.plan.config.data
        return CaseDataset(self.reader, self.plan.manifest, cases, data.channels, data.resolution)

    def _training_cases(self) -> CaseDataset | PatchDataset:
        plan, optim = self.plan, self.optim
        if plan.config.data.resolution == "grid":
            return self._cases(plan.split.train)
        return PatchDataset(
            self.reader,
            plan.manifest,
            plan.split.train,
            plan.config.data,
            optim.batch_size,
            optim.seed,
        )

    # ------------------------------------------------------------------------------ training

    def fit(self) -> FitResult:
        """Train to the last epoch, from the last checkpoint if there is one (all ranks)."""
        stage = running_stage(self.engine)
        position = Position()
        if self.plan.config.resume:
            position = checkpoint.load(self.engine, self.folder, self.frozen_checksum)
        with StopRequest().listening() as stop:
            bar, advance = progress_bar("training", self.optim.epochs * self.steps_per_epoch)
            with bar, self.watchdog.watching():
                advance(position.epoch * self.steps_per_epoch + position.batch)
                try:
                    while position.epoch < self.optim.epochs:
                        position = self._epoch(position, stop, advance)
                except Stopped as stopped:
                    self._save(stopped.position)
                    return FitResult(stopped.position, stage, stop.signal_name or "signal")
        return FitResult(position, stage)

    def _epoch(self, position: Position, stop: StopRequest, advance: Any) -> Position:
        self.engine.train()
        self.batches.set_position(position.epoch, position.batch)
        started, seen, waited_ms = time.monotonic(), 0, 0.0
        for batch, own_wait_ms in timed(on_device(self.loader, self.device)):
            loss, grad_norm, wait_ms = self._step(batch, position, stop, own_wait_ms)
            waited_ms += wait_ms
            position = replace(
                position,
                batch=position.batch + 1,
                step=position.step + 1,
                loss_sum=position.loss_sum + loss,
            )
            seen += self.optim.batch_size
            rate = seen / (time.monotonic() - started)
            self.tracker.metrics(
                position.step,
                train_loss=loss,
                grad_norm=grad_norm,
                images_per_second=rate,
                data_wait_ms=wait_ms,
            )
            advance(1, loss=f"{loss:.4f}", **{"images/s": f"{rate:.1f}"})
        seconds = time.monotonic() - started
        costs = {
            "train_device_seconds_per_sample": seconds * self.world_size / max(seen, 1),
            "data_wait_share": waited_ms / 1000 / seconds,
        }
        self.tracker.metrics(
            position.step,
            train_loss_epoch=position.loss_sum / self.steps_per_epoch,
            **(costs if seen else {}),
        )
        position = replace(
            position,
            epoch=position.epoch + 1,
            batch=0,
            loss_sum=0.0,
            finished=position.epoch + 1 == self.optim.epochs,
        )
        if position.finished or position.epoch % self.optim.validate_every == 0:
            position = self._validate_and_save(position)
        return position

    def _step(
        self, batch: Batch, position: Position, stop: StopRequest, own_wait_ms: float
    ) -> tuple[float, float, float]:
        """One optimizer step.

        Args:
            own_wait_ms: how long this rank waited for its part of the batch.

        Returns:
            The global batch's loss and gradient norm, and the longest wait of any rank: the one
            that held all of them up.

        Raises:
            Stopped: a rank was told to stop; nothing of this batch was applied.
            UserError: the loss is not finite on some rank.
        """
        optim = self.optim
        # Dropout of a step depends on seed, step and rank alone: nothing to save for a resume.
        torch.manual_seed((optim.seed * 1_000_003 + position.step) * 4099 + self.rank)
        image = batch["image"]
        target = region_masks(batch["label"], self.plan.regions)
        seeds = [(optim.seed, position.epoch, place) for place in batch["position"]]
        image, target = self.augment(image, target, seeds, self.anatomy)
        loss = training_loss(self.engine(image.to(self.dtype)), target, self.activation)
        self.watchdog.advance(f"step {position.step + 1}")
        # One collective answers four questions for all ranks: the loss, is it sound, go on, and who
        # waited longest for data?
        report = torch.stack(
            [
                torch.nan_to_num(loss.detach().float(), 0.0, 0.0, 0.0),
                (~torch.isfinite(loss.detach())).float(),
                torch.tensor(float(stop.requested), device=self.device),
            ]
        )
        (loss_sum, broken, stopping), wait_ms = sums_and_largest(report, own_wait_ms)
        if stopping:
            raise Stopped(position)
        if broken:
            raise UserError(
                f"the loss is not finite at step {position.step + 1} (epoch {position.epoch + 1}): "
                f"the training diverged at --lr {optim.lr}; lower it, or add --warmup-epochs 1 "
                "--max-grad-norm 1. The last checkpoint is from before"
            )
        rate = learning_rate(optim, position.step, self.steps_per_epoch)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.backward(loss)
        grad_norm = self._gradient_norm_before_step()
        self.engine.step()
        if grad_norm is None:
            grad_norm = float(self.engine.get_global_grad_norm())
        return loss_sum / self.world_size, grad_norm, wait_ms

    def _gradient_norm_before_step(self) -> float | None:
        # ZeRO computes the norm in its step; stage 0 in float32 never does.
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        if self.engine.zero_optimization_stage() > 0 or self.dtype != torch.float32:
            return None
        return float(torch.nn.utils.get_total_norm(gradients))

    def _validate_and_save(self, position: Position) -> Position:
        self._check_store()
        started = time.monotonic()
        values = validate(self.engine, self.plan, self.validation, self.watchdog)
        device_seconds = (time.monotonic() - started) * self.world_size
        values["val_device_seconds_per_case"] = device_seconds / len(self.validation)
        self.tracker.metrics(position.step, epoch=position.epoch, **values)
        if not math.isfinite(values["val_loss"]):
            raise UserError(
                f"the validation loss is not finite after epoch {position.epoch}: the training "
                f"diverged at --lr {self.optim.lr}; lower it, or add --warmup-epochs 1 "
                "--max-grad-norm 1"
            )
        if values["val_dice"] > position.best_dice:
            position = replace(position, best_dice=values["val_dice"], best_epoch=position.epoch)
            about = {
                "epoch": str(position.epoch),
                "val_dice": json.dumps(values["val_dice"]),
                "dtype": dtype_name(self.engine),
            }
            checkpoint.save_best(self.engine, self.folder, self.donor_names, about)
        self._save(position)
        return position

    def _check_store(self) -> None:
        """Refuse to go on with data that were replaced under the run (all ranks read it alike).

        Raises:
            UserError: the store holds other data than the run began with.
        """
        data, before = self.plan.config.data, self.plan.data_checksum
        now = data_checksum(read_manifest(data.store, data.task), data)
        if now != before:
            raise UserError(
                f"{data.store}/{data.task} was replaced while this run was training (checksum "
                f"{now}, before {before}): the last checkpoint is from before; started again, the "
                "new data are another run"
            )

    def _save(self, position: Position) -> None:
        self.watchdog.advance("checkpoint")
        keep = self.plan.config.keep_checkpoints
        checkpoint.save(self.engine, self.folder, position, self.frozen_checksum, keep)
