"""Runs with everything that the report draws: real data and models, weights as they begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mvl_dist import exhibit, runs
from mvl_dist.evaluation import evaluate_cases
from mvl_dist.plan import make_plan
from mvl_dist.score_table import write_csv
from mvl_dist.showcase import FILE, FOLDER
from mvl_dist.study.grid import Study, StudyRun, load_study
from mvl_dist.tracking import Tracker
from tests.report.logged import log_run, write_study

TASK = "Task91_PhantomTumour"
SMALL = {
    "data": {"target": "labels", "grid": [16, 16, 16]},
    "model": {"depth": 2, "llm_position": 2, "donor": {"source": "random:minilm-l6"}},
    "optim": {"epochs": 2},
}


def phantom_study(folder: Path, **changes: object) -> Path:
    """ViT-Baseline and MedVisionLlama on a phantom task, one fold, with few-shot runs."""
    models = ["ViT-Baseline", "MedVisionLlama"]
    lora = {"model": {"lora": {"targets": ["query"]}}}
    return write_study(
        folder,
        **{
            "set": SMALL,
            "tasks": [TASK],
            "folds": [0],
            "variants": {"ViT-Baseline": {"model": {"name": "vit_baseline"}}, models[1]: lora},
            "tables": {
                "Table 2": {"models": models},
                "Figure 4": {"models": models, "fractions": [0.3]},
            },
            **changes,
        },
    )


def log_pictured(output: Path, uri: str, path: Path, store: Path) -> Study:
    """Log every run of a study with its model's answers on the store's test and validation cases.

    The validation cases stand for test cases: a phantom task has one test case only.
    """
    study = load_study(path)
    for run in study.runs:
        _log(output, uri, run, store)
    return study


def _log(output: Path, uri: str, run: StudyRun, store: Path) -> None:
    config = replace(run.config, data=replace(run.config.data, store=store))
    plan = make_plan(config)
    model = runs.build(plan.recipe, runs.load_run_donor(config)).eval()
    exhibits: list[exhibit.Exhibit] = []
    rows = evaluate_cases(
        model,
        plan,
        (*plan.split.test, *plan.split.validation),
        see=lambda prediction: exhibits.append(exhibit.of_case(plan, prediction)),
    )

    def finish(tracker: Tracker, folder: Path) -> None:
        validation = [row for row in rows if row["case"] in plan.split.validation]
        validation = [{**row, "split": "validation"} for row in validation]
        for name, scored in (("test", rows), ("validation", validation)):
            write_csv(scored, folder / f"{name}_cases.csv")
            tracker.artifact(folder / f"{name}_cases.csv")
        path = folder / FOLDER / FILE
        exhibit.write(path, plan, model, rows, exhibits)
        tracker.artifact(path, FOLDER)
        tracker.tags({"mlflow.note.content": exhibit.note_of(rows, path)})
        for epoch in (1, 2):
            tracker.metrics(
                10 * epoch,
                epoch=epoch,
                val_dice=0.1 * epoch,
                val_loss=1 / epoch,
                train_device_seconds_per_sample=0.5,
                val_device_seconds_per_case=0.25,
            )

    log_run(output, uri, run, {}, finish=finish)
