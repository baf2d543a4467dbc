"""How a run ends: its best model on the held-out test cases, in figures, pictures, a showcase."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist import distributed
from mvl_dist.plan import Plan

if TYPE_CHECKING:
    from mvl_dist.engine import FitResult
    from mvl_dist.tracking import AnyTracker


def score_best(plan: Plan, folder: Path, tracker: AnyTracker, result: FitResult) -> None:
    """Score a run's best model on the held-out cases, shared among the ranks, and track it."""
    import torch.distributed as dist

    from mvl_dist.evaluation import evaluate_cases
    from mvl_dist.runs import load_trained
    from mvl_dist.score_table import summaries, table, tracked, write_csv
    from mvl_dist.sharing import native_sizes, share_by_size

    trained_plan, model = load_trained(folder)
    sizes = native_sizes(plan)
    mine = share_by_size(plan.split.test, sizes, dist.get_rank(), dist.get_world_size())
    started = time.monotonic()
    shown = _Exhibits(trained_plan)
    rows = evaluate_cases(model, trained_plan, mine, see=shown.see)
    seconds_per_case = (time.monotonic() - started) / max(len(mine), 1)
    rows = distributed.gather_objects(rows)
    exhibits = distributed.gather_objects(shown.exhibits)
    if dist.get_rank() != 0:
        return
    rows.sort(key=lambda row: row["case"])  # regions stay in their order
    write_csv(rows, folder / "test_cases.csv")
    _show(trained_plan, folder, tracker, model, rows, exhibits)
    task = plan.manifest.task
    summary = summaries(rows)
    step = result.position.step
    tracker.metrics(step, **tracked(summary, "test"))
    tracker.metrics(step, test_device_seconds_per_case=seconds_per_case)
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


class _Exhibits:
    """What this rank's test cases show; a defect in showing them must not cost a training."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.exhibits: list[Any] = []

    def see(self, prediction: Any) -> None:
        """Take a case in."""
        from mvl_dist import exhibit

        try:
            self.exhibits.append(exhibit.of_case(self.plan, prediction))
        except Exception as error:
            distributed.say(
                f"note: {prediction.case} is not shown ({type(error).__name__}: {error})"
            )


def _show(
    plan: Plan,
    folder: Path,
    tracker: AnyTracker,
    model: Any,
    rows: list[dict[str, Any]],
    exhibits: list[Any],
) -> None:
    """Picture, description and showcase of the test cases; a defect here is a note."""
    from mvl_dist import exhibit, showcase

    path = folder / showcase.FOLDER / showcase.FILE
    if len(exhibits) < len(plan.split.test):
        distributed.say(
            f"note: the showcase holds {len(exhibits)} of the {len(plan.split.test)} test cases"
        )
    try:
        tracker.tags({"mlflow.note.content": exhibit.note_of(rows, path)})
        _draw(plan, folder, rows, exhibits)
        exhibit.write(path, plan, model, rows, exhibits)
    except Exception as error:
        distributed.say(f"note: no showcase of the test cases ({type(error).__name__}: {error})")
    tracker.artifact(path, showcase.FOLDER)


def _draw(plan: Plan, folder: Path, rows: list[dict[str, Any]], exhibits: list[Any]) -> None:
    """The worst, the median and the best test case as test_overlay.png."""
    from mvl_dist.data import load_image
    from mvl_dist.evaluation import Prediction
    from mvl_dist.figures import overlay
    from mvl_dist.showcase import chosen_by_rule, mean_dice

    dice = mean_dice(rows)
    rule = chosen_by_rule(dice)
    wanted = dict.fromkeys(rule[which] for which in ("worst", "median", "best"))
    known = {exhibit.case: exhibit for exhibit in exhibits}
    shown = [known[case] for case in wanted if case in known]
    overlay(
        folder / "test_overlay.png",
        [Prediction(e.case, e.predicted.masks(), e.reference.masks()) for e in shown],
        [load_image(plan.reader, e.case, "first")[0].float().numpy() for e in shown],
        [region.name for region in plan.regions],
        [dice[e.case] for e in shown],
        [plan.manifest.cases[e.case].spacing_mm for e in shown],
    )
