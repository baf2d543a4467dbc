"""One run from its plan to its test table, on ranks that are already there.

`train.py` does this once; `train_study.py` does it for one run after another.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist import distributed
from mvl_dist.config import described, identity, request_key
from mvl_dist.continuing import take_up
from mvl_dist.ended_runs import fail_for_rank_0
from mvl_dist.errors import UserError
from mvl_dist.held_out import score_best
from mvl_dist.models import MODELS
from mvl_dist.plan import Plan, with_batch_for
from mvl_dist.tracking import open_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mvl_dist.engine import FitResult
    from mvl_dist.tracking import AnyTracker, Status


def train_and_test(plan: Plan, accelerator: Accelerator) -> FitResult:
    """Train a run from where it stands, score it on the held-out cases, and close it (all ranks).

    Raises:
        UserError: the run cannot be trained here, or diverged; MLflow says FAILED then.
    """
    reads = MODELS[plan.config.model.name].reads
    key = request_key(plan.config, reads)
    plan = _fit_batch(plan, accelerator.num_processes)
    folder, tracker, result = _train(plan, accelerator, key)
    if result.interrupted:
        distributed.say(
            f"{result.interrupted}: saved at step {result.position.step} in {folder}; the same "
            "command goes on from there"
        )
        _close(tracker, "KILLED")
        return result
    try:
        score_best(plan, folder, tracker, result)
    except BaseException as error:
        _fail(tracker, folder, error)
        raise
    _close(tracker, "FINISHED")
    distributed.say(
        f"\nper case     {folder / 'test_cases.csv'}\npicture      {folder / 'test_overlay.png'}\n"
        f"best model   {folder / 'best.safetensors'}\ncheckpoints  {folder / 'checkpoints'}"
    )
    if tracker.uri:
        distributed.say(f"MLflow       {open_command(tracker.uri)}")
    return result


def _fit_batch(plan: Plan, world_size: int) -> Plan:
    config = with_batch_for(plan.config, world_size)
    if config != plan.config:
        distributed.say(
            f"note: --batch-size {plan.config.optim.batch_size} is below {world_size} ranks; the "
            f"global batch is {config.optim.batch_size}, one case a rank (another run than with "
            f"{plan.config.optim.batch_size}; for that, launch fewer ranks)"
        )
    return replace(plan, config=config)


def _train(plan: Plan, accelerator: Accelerator, key: str) -> tuple[Path, AnyTracker, FitResult]:
    from mvl_dist import runs
    from mvl_dist.compiling import check_compile, compile_in_place
    from mvl_dist.engine import Trainer
    from mvl_dist.kernels import dispatch
    from mvl_dist.models import frozen
    from mvl_dist.models.count import donor_parameter_names, parameter_report
    from mvl_dist.models.donors.llama_recomputed import recompute_mlps
    from mvl_dist.optimizing import dtype_name, prepare_engine, running_stage
    from mvl_dist.tracking import NullTracker, Tracker, default_uri

    config = plan.config
    if config.kernels == "triton":
        dispatch.require_triton()
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    stage = settings["zero_optimization"]["stage"]
    if config.compile:
        check_compile(stage, accelerator.device.type)
    if MODELS[config.model.name].needs_donor:
        frozen.check_launch(config.model.frozen_precision, stage, accelerator.device)
    donor = runs.load_run_donor(config)
    donor_checksum = donor.checksum if donor else ""
    model = runs.build(plan.recipe, donor)
    if config.recompute_mlp:
        recompute_mlps(model, stage)
    checksum = runs.frozen_checksum(model)
    counts = parameter_report(model)
    donor_names = donor_parameter_names(model)
    reads = MODELS[config.model.name].reads
    name = identity(
        config,
        reads,
        plan.data_checksum,
        donor_checksum,
        plan.manifest.task.mirror_axes,
    )
    folder = runs.run_folder(config, name)

    tracker: AnyTracker = NullTracker()
    if accelerator.is_main_process:
        _make_folder(folder, keep=config.resume)
        about = {"data_checksum": plan.data_checksum, "donor_checksum": donor_checksum}
        if config.resume_from:
            step = take_up(config.resume_from, folder, config, reads)
            if step:
                distributed.say(f"goes on from step {step} of {config.resume_from}")
        runs.write_description(folder, plan, {**about, **plan.recipe.to_plain()})
        tracker = Tracker(folder, default_uri(config.output), config.experiment, folder.name)
    if config.compile:
        compile_in_place(model)
    engine = prepare_engine(accelerator, model, config.optim)
    running = {
        "zero_stage": running_stage(engine),
        "world_size": accelerator.num_processes,
        "nodes": int(os.environ.get("GROUP_WORLD_SIZE", "1")),  # torch's name for launchers
        "precision": dtype_name(engine),
        "donor_checksum": donor_checksum,
        "device": _device_name(accelerator),
        "kernels": _kernels(config.kernels, accelerator),
        "compile": config.compile,
        "key": key,
    }
    _describe(plan, tracker, folder, counts, running)
    _configure_kernels(config.kernels, accelerator, tracker)
    try:
        result = Trainer(plan, engine, folder, tracker, donor_names, checksum).fit()
    except BaseException as error:
        _fail(tracker, folder, error)
        raise
    return folder, tracker, result


def _kernels(policy: str, accelerator: Accelerator) -> str:
    """The policy in words: what `auto` comes to is known at once where there is no GPU."""
    on_cpu = policy == "auto" and accelerator.device.type == "cpu"
    return "auto: torch on a CPU" if on_cpu else policy


def _configure_kernels(policy: str, accelerator: Accelerator, tracker: AnyTracker) -> None:
    """Set how fused operations run in this run; what is picked is said once and tagged."""
    from mvl_dist.kernels import dispatch

    picked: dict[str, list[str]] = {}

    def tell(pick: dispatch.Pick) -> None:
        distributed.say(f"kernels: {pick}")
        picked.setdefault(pick.operation, []).append(str(pick))
        tracker.tags({f"kernels.{pick.operation}": "; ".join(picked[pick.operation])})

    dispatch.configure(
        policy,
        leads=accelerator.is_main_process,
        share=distributed.from_rank_0,
        tell=tell,
    )


def _device_name(accelerator: Accelerator) -> str:
    """What a run's times were measured on: the GPU's name, or the CPU threads a rank has."""
    import torch

    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def _make_folder(folder: Path, keep: bool) -> None:
    """Make the run's folder; one that is there is put aside if the run is to start anew."""
    try:
        if folder.exists() and not keep:
            folder.rename(f"{folder}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run's folder {folder} ({error.strerror}): choose another --output"
        ) from error


def _describe(
    plan: Plan,
    tracker: AnyTracker,
    folder: Path,
    counts: dict[str, int],
    running: dict[str, Any],
) -> None:
    """Say and track what is being run."""
    from mvl_dist.provenance import git_state, versions

    config, split, task = plan.config, plan.split, plan.manifest.task
    nodes = f" on {running['nodes']} nodes" if running["nodes"] > 1 else ""
    distributed.say(
        f"{task.name} fold {split.fold}: {len(split.train)} train, {len(split.validation)} "
        f"validation, {len(split.test)} test cases; {config.model.name}, "
        f"{counts['trainable']:,} trainable and {counts['frozen']:,} frozen parameters; "
        f"{running['world_size']} ranks{nodes}, DeepSpeed ZeRO-{running['zero_stage']}, "
        f"{running['precision']}, kernels {running['kernels']}\n{folder}"
    )
    tracker.params(described(config, MODELS[config.model.name].reads))
    tracker.params({"parameters": counts})
    tracker.tags(
        {
            "task": task.name,
            "model": config.model.name,
            "fold": split.fold,
            "fraction": split.fraction,
            "identity": folder.name.rsplit("-", 1)[-1],
            "data_checksum": plan.data_checksum,
            "store_checksum": plan.manifest.checksum,
            "resumed_from": str(config.resume_from or ""),
            **running,
            "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
            **git_state(),
            **{f"version.{name}": version for name, version in versions().items()},
        }
    )
    for name in ("config.yaml", "split.json", "run.json"):
        tracker.artifact(folder / name)
    tracker.flush()  # a study finds the run by its tags, however early it dies


def _fail(tracker: AnyTracker, folder: Path, error: BaseException) -> None:
    """Have MLflow say that the run failed.

    A rank that meets a user's mistake alone, as a damaged case, ends the launch; rank 0 has no time
    to say so then.
    """
    if distributed.env_rank() == 0:
        _close(tracker, "FAILED")
    elif isinstance(error, UserError):
        fail_for_rank_0(folder)


def _close(tracker: AnyTracker, status: Status) -> None:
    left = tracker.close(status)
    if left:
        distributed.say(f"note: {left}")
