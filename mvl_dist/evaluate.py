"""`mvl evaluate RUN_FOLDER`: score a trained run on its test or validation cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class EvaluateArguments:
    """Score a trained run on the scans' own grids, in one process, without DeepSpeed."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Run folder, as printed when a training ends."""
    split: Literal["test", "validation"] = "test"
    """Which cases."""
    store: Path | None = None
    """Where the store lies now, if it was moved."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl evaluate`; writes RUN_FOLDER/SPLIT_cases.csv and prints the table."""
    arguments = tyro.cli(EvaluateArguments, args=list(argv), prog="mvl evaluate")
    from mvl_dist.evaluation import evaluate_cases, summaries, table, write_csv
    from mvl_dist.runs import load_trained

    plan, model = load_trained(arguments.folder, arguments.store)
    cases = plan.split.test if arguments.split == "test" else plan.split.validation
    rows, _ = evaluate_cases(model, plan, cases)
    path = arguments.folder / f"{arguments.split}_cases.csv"
    write_csv(rows, path)
    print(f"{plan.manifest.task.name}, {arguments.split} cases, {plan.config.model.name}")
    summary = summaries(rows, [region.name for region in plan.regions])
    print(table(summary, plan.manifest.task.tolerance_mm))
    print(f"per case: {path}")
    return 0
