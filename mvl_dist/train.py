"""Train one run and score it on the held-out test cases.

    accelerate launch --config_file accelerate_configs/a100x8.yaml mvl_dist/train.py [flags]

Every rank runs this file. What can be wrong with a run is found before torch is imported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Python puts a script's folder first in the path, where our file names would hide other packages.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from mvl_dist import distributed
from mvl_dist.config import RunConfig, identity, parse, to_plain
from mvl_dist.errors import UserError
from mvl_dist.plan import Plan, make_plan, with_batch_for
from mvl_dist.tracking import open_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mvl_dist.engine import FitResult
    from mvl_dist.tracking import AnyTracker, Status


def main(argv: Sequence[str]) -> int:
    """Parse, build, fit, test, close."""
    plan = make_plan(_parse(argv))
    accelerator = distributed.start()
    plan = _fit_batch(plan, accelerator.num_processes)
    folder, tracker, result = _train(plan, accelerator)
    if result.interrupted:
        distributed.say(
            f"{result.interrupted}: saved at step {result.position.step} in {folder}; the same "
            "command goes on from there"
        )
        _close(tracker, "KILLED")
        return 0
    _test(plan, folder, tracker, result)
    _close(tracker, "FINISHED")
    distributed.say(
        f"\nper case     {folder / 'test_cases.csv'}\npicture      {folder / 'test_overlay.png'}\n"
        f"best model   {folder / 'best.safetensors'}\ncheckpoints  {folder / 'checkpoints'}"
    )
    if tracker.uri:
        distributed.say(f"MLflow       {open_command(tracker.uri)}")
    return 0


def _parse(argv: Sequence[str]) -> RunConfig:
    try:
        with distributed.only_rank_0_prints():
            return parse(argv, prog="train.py")
    except SystemExit as end:  # --help, or a flag that does not exist
        if not end.code:
            raise
        if distributed.env_rank() != 0:
            time.sleep(distributed.WAIT_FOR_RANK_0_SECONDS)
        distributed.end_launch(2)


def _fit_batch(plan: Plan, world_size: int) -> Plan:
    config = with_batch_for(plan.config, world_size)
    if config != plan.config:
        distributed.say(
            f"note: --batch-size {plan.config.optim.batch_size} is below {world_size} ranks; the "
            f"global batch is {config.optim.batch_size}, one case a rank (another run than with "
            f"{plan.config.optim.batch_size}; for that, launch fewer ranks)"
        )
    return replace(plan, config=config)


def _train(plan: Plan, accelerator: Accelerator) -> tuple[Path, AnyTracker, FitResult]:
    from mvl_dist import runs
    from mvl_dist.engine import Trainer, dtype_name, prepare_engine, running_stage
    from mvl_dist.models.count import donor_parameter_names, parameter_report
    from mvl_dist.tracking import NullTracker, Tracker, default_uri

    config = plan.config
    donor = runs.load_run_donor(config)
    donor_checksum = donor.checksum if donor else ""
    model = runs.build(plan, donor)
    checksum = runs.frozen_checksum(model)
    counts = parameter_report(model)
    donor_names = donor_parameter_names(model)
    folder = runs.run_folder(config, identity(config, plan.manifest.checksum, donor_checksum))

    tracker: AnyTracker = NullTracker()
    if accelerator.is_main_process:
        _make_folder(folder, keep=config.resume)
        about = {"data_checksum": plan.manifest.checksum, "donor_checksum": donor_checksum}
        runs.write_description(folder, plan, about)
        tracker = Tracker(folder, default_uri(config.output), config.experiment, folder.name)
    engine = prepare_engine(accelerator, model, config.optim)
    running = {
        "zero_stage": running_stage(engine),
        "world_size": accelerator.num_processes,
        "precision": dtype_name(engine),
        "donor_checksum": donor_checksum,
    }
    _describe(plan, tracker, folder, counts, running)
    try:
        result = Trainer(plan, engine, folder, tracker, donor_names, checksum).fit()
    except BaseException:
        _close(tracker, "FAILED")
        raise
    return folder, tracker, result


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
    distributed.say(
        f"{task.name} fold {split.fold}: {len(split.train)} train, {len(split.validation)} "
        f"validation, {len(split.test)} test cases; {config.model.name}, "
        f"{counts['trainable']:,} trainable and {counts['frozen']:,} frozen parameters; "
        f"{running['world_size']} ranks, DeepSpeed ZeRO-{running['zero_stage']}, "
        f"{running['precision']}\n{folder}"
    )
    tracker.params(to_plain(config))
    tracker.params({"parameters": counts})
    tracker.tags(
        {
            "task": task.name,
            "model": config.model.name,
            "fold": split.fold,
            "fraction": split.fraction,
            "identity": folder.name.rsplit("-", 1)[-1],
            "data_checksum": plan.manifest.checksum,
            **running,
            "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
            **git_state(),
            **{f"version.{name}": version for name, version in versions().items()},
        }
    )
    for name in ("config.yaml", "split.json", "run.json"):
        tracker.artifact(folder / name)


def _test(plan: Plan, folder: Path, tracker: AnyTracker, result: FitResult) -> None:
    """Score the best model on the held-out cases, shared among the ranks."""
    import torch.distributed as dist

    from mvl_dist.evaluation import evaluate_cases, summaries, table, write_csv
    from mvl_dist.runs import load_trained

    trained_plan, model = load_trained(folder)
    mine = distributed.share(plan.split.test, dist.get_rank(), dist.get_world_size())
    rows, predictions = evaluate_cases(model, trained_plan, mine)
    rows = distributed.gather_objects(rows)
    if dist.get_rank() != 0:
        return
    rows.sort(key=lambda row: (row["case"], row["region"]))
    write_csv(rows, folder / "test_cases.csv")
    _draw(plan, folder, rows, predictions[:3])
    task = plan.manifest.task
    summary = summaries(rows, [region.name for region in plan.regions])
    step = result.position.step
    for region, values in summary.items():
        tracker.metrics(
            step,
            **{f"test_{key}/{_letters(region)}": value.mean for key, value in values.items()},
            **{f"test_n_{key}/{_letters(region)}": value.n for key, value in values.items()},
        )
    tracker.table(rows, "test_cases.json")
    tracker.artifact(folder / "test_cases.csv")
    tracker.artifact(folder / "test_overlay.png")
    tracker.artifact(folder / "best.safetensors", "model")
    position = result.position
    print(
        f"\n{task.name}, {len(plan.split.test)} held-out test cases, {plan.config.model.name}\n"
        f"best of {position.epoch} epochs by validation Dice: {position.best_dice:.3f} after epoch "
        f"{position.best_epoch}\n\n{table(summary, task.tolerance_mm)}",
        flush=True,
    )


def _draw(plan: Plan, folder: Path, rows: list[dict[str, Any]], predictions: list[Any]) -> None:
    from mvl_dist.data import load_image
    from mvl_dist.figures import overlay

    store, task = plan.config.data.store, plan.manifest.task.name
    regions = [region.name for region in plan.regions]
    dice = {
        prediction.case: [row["dice"] for row in rows if row["case"] == prediction.case]
        for prediction in predictions
    }
    overlay(
        folder / "test_overlay.png",
        predictions,
        [load_image(store, task, p.case, "first")[0].float().numpy() for p in predictions],
        regions,
        [sum(dice[p.case]) / len(dice[p.case]) for p in predictions],
        [plan.manifest.cases[p.case].spacing_mm for p in predictions],
    )


def _letters(region: str) -> str:
    from mvl_dist.engine import metric_name

    return metric_name(region)


def _close(tracker: AnyTracker, status: Status) -> None:
    left = tracker.close(status)
    if left:
        distributed.say(f"note: {left}")


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        distributed.close()
    except UserError as user_error:
        distributed.fail(user_error)
    except KeyboardInterrupt:  # before or after the training, which would save first
        distributed.end_launch(130)
    sys.exit(code)
