"""Train a study's open runs one after another in one launch; `mvl study run` starts this.

    accelerate launch --config_file accelerate_configs/a100x8.yaml mvl_dist/train_study.py STUDY

Any number of launches may work on one study: each run is claimed before it is trained. With one
rank a run that fails is noted and the next one is taken. With several, a mistake that one rank
finds would leave the others waiting, so the launch ends, and `mvl study run` starts the next.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from mvl_dist import distributed, stopping
from mvl_dist.errors import UserError
from mvl_dist.plan import make_plan
from mvl_dist.study.grid import StudyRun
from mvl_dist.study.lease import lease
from mvl_dist.study.selection import Selection, is_still_open, open_runs, parse_selection
from mvl_dist.training import train_and_test

# What `mvl study run` reads from the exit status.
ALL_DONE, SOME_FAILED, INTERRUPTED = 0, 3, 4


def main(argv: Sequence[str]) -> int:
    """Train up to `--limit` open runs; returns one of the three statuses above."""
    selection = parse_selection(argv, "train_study.py")
    accelerator = distributed.start()
    failed = done = 0
    for run in _next_runs(selection):
        if run is None:
            break
        distributed.say(f"\n--- {run} (key {run.key})")
        try:
            result = train_and_test(make_plan(run.config), accelerator)
        except UserError as error:
            if accelerator.num_processes > 1:
                raise
            distributed.say(f"failed: {error}", file=sys.stderr)
            failed += 1
        else:
            if result.interrupted:
                return INTERRUPTED
            done += 1
        accelerator.free_memory()
    distributed.say(f"\n{done} runs trained, {failed} failed")
    return SOME_FAILED if failed else ALL_DONE


def _next_runs(selection: Selection) -> Iterator[StudyRun | None]:
    """Open runs that rank 0 claims, the same on every rank; None ends it."""
    taken = 0
    if distributed.env_rank() != 0:
        while True:
            yield distributed.from_rank_0(None)
    for run in open_runs(selection):
        if selection.limit and taken >= selection.limit:
            break
        with lease(selection.output, run.key) as mine:
            # Asked again: another launch may have trained it since the list was made.
            if not mine or not is_still_open(run, selection):
                continue
            taken += 1
            yield distributed.from_rank_0(run)
    yield distributed.from_rank_0(None)


if __name__ == "__main__":
    stopping.hear_signals()
    try:
        code = main(sys.argv[1:])
        distributed.close()
    except UserError as user_error:
        distributed.fail(user_error)
    except KeyboardInterrupt:
        distributed.end_launch(130)
    if code:
        distributed.end_launch(code)
    sys.exit(0)
