"""Train one run and score it on the held-out test cases.

    accelerate launch --config_file accelerate_configs/a100x8.yaml mvl_dist/train.py [flags]

Every rank runs this file. What can be wrong with a run is found before torch is imported.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Python puts a script's folder first in the path, where our file names would hide other packages.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from mvl_dist import distributed, stopping
from mvl_dist.config import RunConfig, parse, request_key
from mvl_dist.continuing import differences, told, unfinished
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS
from mvl_dist.plan import make_plan, with_batch_for
from mvl_dist.study.lease import holder, lease, lease_seconds
from mvl_dist.training import train_and_test


def main(argv: Sequence[str]) -> int:
    """Parse, plan, join the other ranks, train and test."""
    plan = make_plan(_parse(argv))
    _refuse_forgotten(plan.config)
    accelerator = distributed.start()
    with_batch_for(plan.config, accelerator.num_processes)  # refused before anything is written
    with _held(plan.config):
        train_and_test(plan, accelerator)
    return 0


def _refuse_forgotten(config: RunConfig) -> None:
    """Stop where a setting was changed of a run that is unfinished and that nobody trains.

    Raises:
        UserError: says what differs, and the flags for either wish.
    """
    reads = MODELS[config.model.name].reads
    if distributed.env_rank() != 0 or config.beside or config.resume_from:
        return
    for folder, other in unfinished(config, reads):
        if holder(config.output, request_key(other, reads)):
            continue
        raise UserError(
            f"{folder} is unfinished and differs in {told(differences(other, config, reads))}: go "
            f"on with it by --config {folder / 'config.yaml'}, with the new settings by "
            f"--resume-from {folder}, or begin this run by --beside True"
        )


@contextlib.contextmanager
def _held(config: RunConfig) -> Iterator[None]:
    """Hold the run's lease on rank 0: two launches of one run would write into one folder.

    Raises:
        UserError: another process trains it.
    """
    if distributed.env_rank() != 0:
        yield
        return
    key = request_key(config, MODELS[config.model.name].reads)
    with lease(config.output, key) as mine:
        if not mine:
            raise UserError(
                f"this run is being trained already by {holder(config.output, key)}; if that died "
                f"with its machine, its lease is over within {lease_seconds():.0f} s"
            )
        yield


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


if __name__ == "__main__":
    stopping.hear_signals()
    try:
        code = main(sys.argv[1:])
        distributed.close()
    except UserError as user_error:
        distributed.fail(user_error)
    except KeyboardInterrupt:  # before or after the training, which would save first
        distributed.end_launch(130)
    sys.exit(code)
