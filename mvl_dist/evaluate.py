"""`mvl evaluate RUN ...`: score trained runs on their test or validation cases.

Several GPUs: `torchrun --nproc-per-node 8 -m mvl_dist.evaluate RUN ...`; cases are shared out by
size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mvl_dist import distributed
from mvl_dist.config import StoreFlag
from mvl_dist.errors import UserError

if TYPE_CHECKING:
    import torch

    from mvl_dist.plan import Plan
    from mvl_dist.postprocess import Choice

Ranks = tuple[int, int]


@dataclass(frozen=True)
class EvaluateArguments:
    """Score trained runs on the scans' own grids, without DeepSpeed."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, as printed when a training ends, or MLflow run ids."""
    split: Literal["test", "validation"] = "test"
    """Which cases. The validation cases of five folds are a task's cases, each scored by a model
    that has not seen it."""
    ensemble: bool = False
    """Average the probabilities of the given runs (folds of one model) on the test cases."""
    largest_component: bool = False
    """Keep only the largest component of each region where that raises the mean Dice of the
    validation cases."""
    store: StoreFlag | None = None
    """Where the store lies now, if it was moved."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl evaluate`; writes SPLIT_cases.csv beside each run and prints the tables."""
    arguments = tyro.cli(
        EvaluateArguments,
        args=list(argv),
        prog="mvl evaluate",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if not arguments.runs:
        raise UserError("mvl evaluate takes one run or more: a folder or an MLflow run id")
    if arguments.ensemble and arguments.split == "validation":
        raise UserError(
            "--ensemble is for the test cases: each validation case trained the other folds' models"
        )
    from mvl_dist.finding import find_run

    with distributed.joined() as ranks:
        # One rank looks, or each would fetch the same files from MLflow.
        found = [find_run(run) for run in arguments.runs] if ranks[0] == 0 else []
        folders = distributed.from_rank_0(found) if ranks[1] > 1 else found
        if arguments.ensemble:
            _evaluate_ensemble(folders, arguments, ranks)
        else:
            for folder in folders:
                _evaluate_run(folder, arguments, ranks)
    return 0


def _evaluate_run(folder: Path, arguments: EvaluateArguments, ranks: Ranks) -> None:
    from mvl_dist.checkpoint import last_checkpoint
    from mvl_dist.runs import load_trained

    plan, model = load_trained(folder, arguments.store)
    choice = None
    if arguments.largest_component:
        choice = _choice(folder, lambda: (plan, model), ranks)
    rows = _score(model, plan, arguments.split, choice, ranks)
    if ranks[0] != 0:
        return
    last = last_checkpoint(folder)
    step = int(last["position"]["step"]) if last else 0
    title = f"{plan.manifest.task.name} fold {plan.split.fold}, {plan.config.model.name}"
    _report([folder], folder, title, rows, arguments.split, choice, plan, step)


def _evaluate_ensemble(folders: list[Path], arguments: EvaluateArguments, ranks: Ranks) -> None:
    from mvl_dist.ensemble import ensemble_name, load_ensemble
    from mvl_dist.files import write_text_atomically
    from mvl_dist.postprocess import combine, write_choice
    from mvl_dist.runs import load_trained

    plan, model = load_ensemble(folders, arguments.store)
    folder = folders[0].resolve().parent / ensemble_name(folders)
    if ranks[0] == 0:
        folder.mkdir(exist_ok=True)
        members = {"members": [str(member.resolve()) for member in folders]}
        write_text_atomically(folder / "ensemble.json", json.dumps(members, indent=1))
    choice = None
    if arguments.largest_component:
        # Each fold's own model on the validation cases that it has not seen.
        choice = combine(
            [_choice(one, partial(load_trained, one, arguments.store), ranks) for one in folders]
        )
        distributed.say(f"together     {_in_words(choice)}")
        if ranks[0] == 0:
            write_choice(folder, choice)
    rows = [
        {**row, "fold": "ensemble", "seed": "ensemble"}
        for row in _score(model, plan, "test", choice, ranks)
    ]
    if ranks[0] == 0:
        title = f"{plan.manifest.task.name}, {plan.config.model.name}, {len(folders)} runs averaged"
        _report(folders, folder, title, rows, "ensemble_test", choice, plan, 0)


def _choice(folder: Path, load: Callable[[], tuple[Plan, torch.nn.Module]], ranks: Ranks) -> Choice:
    """A run's choice of regions to clean, made now where there is none for its model."""
    from mvl_dist.checkpoint import BEST
    from mvl_dist.evaluation import largest_component_gains
    from mvl_dist.files import sha256_of
    from mvl_dist.postprocess import POSTPROCESSING, choose, read_choice, write_choice
    from mvl_dist.sharing import native_sizes, share_by_size

    source = [sha256_of(folder / BEST)]
    choice = read_choice(folder, source)
    if choice is None:
        plan, model = load()
        mine = share_by_size(plan.split.validation, native_sizes(plan), *ranks)
        gains = distributed.gather_objects(largest_component_gains(model, plan, mine))
        choice = choose(gains, source)
        if ranks[0] == 0:
            write_choice(folder, choice)
    distributed.say(f"{_in_words(choice)} ({folder / POSTPROCESSING})")
    return choice


def _in_words(choice: Choice) -> str:
    regions = ", ".join(choice.regions) or "no region"
    return (
        f"largest component: kept alone in {regions}, by the Dice of {choice.cases} validation "
        "cases"
    )


def _score(
    model: torch.nn.Module, plan: Plan, split: str, choice: Choice | None, ranks: Ranks
) -> list[dict[str, Any]]:
    """Rows of all ranks, sorted by case."""
    from mvl_dist.evaluation import evaluate_cases
    from mvl_dist.sharing import native_sizes, share_by_size

    cases = plan.split.test if split == "test" else plan.split.validation
    mine = share_by_size(cases, native_sizes(plan), *ranks)
    largest = choice.regions if choice else ()
    rows = evaluate_cases(model, plan, mine, split=split, largest=largest)
    return sorted(distributed.gather_objects(rows), key=lambda row: str(row["case"]))


def _report(
    runs: Sequence[Path],
    folder: Path,
    title: str,
    rows: list[dict[str, Any]],
    name: str,
    choice: Choice | None,
    plan: Plan,
    step: int,
) -> None:
    """Write, track and print the rows; an ensemble's go to the MLflow run of each member."""
    from mvl_dist.postprocess import POSTPROCESSING
    from mvl_dist.record import record
    from mvl_dist.score_table import summaries, table, tracked, write_csv

    name += "_largest_component" if choice else ""
    path = folder / f"{name}_cases.csv"
    write_csv(rows, path)
    summary = summaries(rows)
    print(f"\n{title}, {len({row['case'] for row in rows})} {name.replace('_', ' ')} cases")
    print(table(summary, plan.manifest.task.tolerance_mm))
    print(f"\nper case     {path}")
    for run in runs:
        files = [path, *([run / POSTPROCESSING] if choice else [])]
        metrics = tracked(summary, name) if run == folder else {}
        told = record(run, step, metrics, {f"{name}_cases.json": rows}, files)
        if told:
            print(told)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except UserError as user_error:
        distributed.fail(user_error)
    sys.exit(code)
