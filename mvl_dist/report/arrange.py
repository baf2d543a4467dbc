"""Parent runs in MLflow: one a task, over all its runs, so that browsing answers two questions.

Which run is best on Task07, and what did it get wrong? The parent's description names the best run
and its worst cases, `leaderboard.json` ranks the task's runs, `failures.json` lists the cases that
the best model segments worst; in the list of runs its children fold out under it. Called again, it
updates the parents that are there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mvl_dist.errors import UserError
from mvl_dist.journal import SPOOL
from mvl_dist.mlflow_server import KIND, TRAINING, replace_table
from mvl_dist.report.results import Results, Slot
from mvl_dist.showcase import rank_cases
from mvl_dist.tracked import asked

PARENT = "mlflow.parentRunId"
ROLE = "mvl.role"
WORST = 10


def arrange(results: Results, experiment: str, page: Path) -> Iterator[str]:
    """Write a parent a task; yields a line for each.

    Raises:
        UserError: a spool, or MLflow does not answer.
    """
    uri = results.source.uri
    if uri.startswith(SPOOL):
        raise UserError("--arrange writes to MLflow, and these runs are spooled: 'mvl sync' first")
    for task in results.tasks(present_only=True):
        board = leaderboard(results, task)
        yield asked(uri, partial(_write, results, experiment, task, board, page))


def leaderboard(results: Results, task: str) -> list[dict[str, Any]]:
    """Finished runs of a task, the best mean Dice first."""
    slots = {s.asked.key: s for s in results.of(task=task, fraction=None) if s.run}
    rows = [_row(results, slot) for slot in slots.values()]
    return sorted(rows, key=lambda row: -row["dice"])


def _row(results: Results, slot: Slot) -> dict[str, Any]:
    assert slot.run is not None
    config = slot.asked.config
    values = {m: results.cases([slot], m) for m in ("dice", "nsd", "hd95_mm")}
    dice = values["dice"]
    return {
        "model": slot.model,
        "fold": config.data.fold,
        "fraction": config.data.fraction,
        **{metric: round(statistics.fmean(v.values()), 4) for metric, v in values.items()},
        "worst_case": rank_cases(dice)[0],
        "worst_dice": round(min(dice.values()), 4),
        "cases": len(dice),
        "seed": config.optim.seed,
        "run_id": slot.run.run_id,
    }


def failures(results: Results, task: str, run_id: str) -> list[dict[str, Any]]:
    """The cases that a run segments worst, and what every other model makes of them."""
    slots = [slot for slot in results.of(task=task, fraction=None) if slot.run]
    (best,) = [slot for slot in slots if slot.run and slot.run.run_id == run_id][:1]
    dice = results.cases([best])
    fraction = best.asked.config.data.fraction
    alike = [slot for slot in slots if slot.asked.config.data.fraction == fraction]
    models = {slot.model: [s for s in alike if s.model == slot.model] for slot in alike}
    others = {model: results.cases(of_model) for model, of_model in models.items()}
    return [
        {
            "case": case,
            "best_run_dice": round(dice[case], 4),
            **{f"dice {m}": round(v[case], 4) if case in v else None for m, v in others.items()},
        }
        for case in rank_cases(dice)[:WORST]
    ]


def _write(
    results: Results,
    experiment: str,
    task: str,
    board: list[dict[str, Any]],
    page: Path,
    client: Any,
) -> str:
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    client.set_experiment_tag(experiment_id, KIND, TRAINING)  # older experiments have none
    condition = f"tags.`{ROLE}` = 'parent' and tags.task = '{task}'"
    found = client.search_runs([experiment_id], condition, max_results=1)
    if found:
        parent = found[0].info.run_id
    else:
        tags = {ROLE: "parent", "task": task}
        parent = client.create_run(experiment_id, run_name=f"all of {task}", tags=tags).info.run_id
    full = [row for row in board if row["fraction"] == 1] or board
    best = full[0]
    worst = failures(results, task, best["run_id"])
    lines = [
        f"**Best on {task}: {best['model']}, fold {best['fold']}, Dice {best['dice']:.3f}** over "
        f"{best['cases']} cases ([run](#/experiments/{experiment_id}/runs/{best['run_id']})).",
        "",
        "What it got wrong (lowest Dice):",
        "",
        *(f"- {row['case']}: {row['best_run_dice']:.3f}" for row in worst[:5]),
        "",
        "`leaderboard.json`: every run; `failures.json`: the worst cases, and the other models "
        "on them; `report/index.html`: the report.",
    ]
    client.set_tag(parent, "mlflow.note.content", "\n".join(lines))
    client.set_tag(parent, "best_model", best["model"])
    client.set_tag(parent, "best_run", best["run_id"])
    client.log_metric(parent, "best_dice", best["dice"])
    for rows, file in ((board, "leaderboard.json"), (worst, "failures.json")):
        replace_table(client, parent, {key: [r[key] for r in rows] for key in rows[0]}, file)
    both = [{"path": file, "type": "table"} for file in ("leaderboard.json", "failures.json")]
    client.set_tag(parent, "mlflow.loggedArtifacts", json.dumps(both))
    client.log_artifact(parent, str(page), "report")
    client.set_terminated(parent)
    for row in board:
        client.set_tag(row["run_id"], PARENT, parent)
    return f"MLflow: 'all of {task}' over {len(board)} runs, best {best['model']}"
