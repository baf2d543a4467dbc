"""The ranking and the out-of-fold track, on values whose answer is known beforehand."""

import csv
import io
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from mvl_dist.report.layout import Table, to_csv, to_latex
from mvl_dist.report.ranks import ranking_table
from mvl_dist.report.results import Results
from mvl_dist.report.source import Source
from mvl_dist.report.unseen import out_of_fold_table
from mvl_dist.score_table import write_csv
from mvl_dist.study.grid import Study, StudyRun, load_study
from mvl_dist.tracking import Tracker
from tests.report.logged import RANDOM, VARIANTS, cases, log_run, rows_of, spool, write_study

GAIN = {"ViT-Baseline": 0.0, "random block": 0.02, "MedVisionLlama": 0.04}


def read(folder: Path, study: Study) -> Results:
    return Results(Source(spool(folder / "runs"), folder), [study], ["trial"])


def as_dicts(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def unseen(run: StudyRun) -> dict[str, float]:
    """Six validation cases of a run's fold, which no other fold has."""
    fold = run.config.data.fold
    shift = GAIN[run.label] + 0.1 * fold
    return {f"fold{fold}_{case}": dice for case, dice in cases(6, shift).items()}


def scored_on_validation(run: StudyRun) -> Callable[[Tracker, Path], None]:
    """Adds what `mvl evaluate --split validation` adds."""

    def finish(tracker: Tracker, folder: Path) -> None:
        rows = [{**row, "split": "validation"} for row in rows_of(run, unseen(run), "foreground")]
        write_csv(rows, folder / "validation_cases.csv")
        tracker.artifact(folder / "validation_cases.csv")

    return finish


def test_every_case_is_counted_once_and_compared_with_the_baseline(tmp_path: Path) -> None:
    output, study = tmp_path / "runs", load_study(write_study(tmp_path))
    for run in study.runs:
        late = run.label == "random block" and run.config.data.fold == 1
        finish = None if late else scored_on_validation(run)
        log_run(output, spool(output), run, cases(5), finish=finish)
    table, (note,) = out_of_fold_table(read(tmp_path, study))
    rows = {row["Model"]: row for row in as_dicts(table)}
    base = [*cases(6).values(), *cases(6, 0.1).values()]
    for model in ("ViT-Baseline", "MedVisionLlama"):
        expected = [value + GAIN[model] for value in base]
        assert float(rows[model]["Dice"]) == pytest.approx(statistics.mean(expected), abs=1e-6)
        assert float(rows[model]["Dice SD"]) == pytest.approx(statistics.stdev(expected), rel=1e-5)
        assert (rows[model]["Dice n"], rows[model]["Dice runs"]) == ("12", "2")
    difference = "Dice, median difference to ViT-Baseline"
    # All twelve better: p = 2 / 2^12. Of six: 2 / 2^6, which Holm doubles (two metrics) to 0.06.
    assert rows["MedVisionLlama"][difference] == "+0.040 [+0.040, +0.040], 12-0, n=12"
    assert rows["MedVisionLlama"]["Dice marks"] == "*†"
    assert rows["random block"][difference] == "+0.020, 6-0, n=6"
    assert rows["random block"]["Dice marks"] == "†"
    assert (rows["random block"]["Dice runs"], rows["random block"]["Dice runs expected"]) == (
        "1",
        "2",
    )
    assert rows["ViT-Baseline"][difference] == ""
    assert note.startswith("Out-of-fold track: 1 runs")


def test_without_validation_rows_a_note_names_the_command(tmp_path: Path) -> None:
    output, study = tmp_path / "runs", load_study(write_study(tmp_path))
    log_run(output, spool(output), study.runs[0], cases(5))
    table, (note,) = out_of_fold_table(read(tmp_path, study))
    assert not table.rows
    assert "mvl evaluate RUN ... --split validation" in note
    assert ranking_table(read(tmp_path, study))[0].rows == ()  # of one model


# ----------------------------------------------------------------------------------- the ranking


def log_regions(output: Path, run: StudyRun, order: dict[str, dict[str, float]]) -> None:
    """Log a run with nine cases of several regions; `order` gives region -> model -> gain."""

    def finish(tracker: Tracker, folder: Path) -> None:
        rows = []
        for region, gain in order.items():
            kind = {"foreground": "foreground", "whole": "union"}.get(region, "label")
            of_region = rows_of(run, cases(9, gain[run.label]), region)
            rows += [{**row, "kind": kind} for row in of_region]
        write_csv(rows, folder / "test_cases.csv")
        tracker.artifact(folder / "test_cases.csv")

    log_run(output, spool(output), run, {}, finish=finish)


def test_models_are_ranked_by_label_and_over_all_labels(tmp_path: Path) -> None:
    models = [*GAIN, "again"]  # is MedVisionLlama by another name, which must not count twice
    path = write_study(
        tmp_path,
        variants={**VARIANTS, "random block": RANDOM, "again": {}},
        tables={"weights": {"models": models}},
    )
    study, output = load_study(path), tmp_path / "runs"
    level = dict.fromkeys(GAIN, 0.0)
    last = {**GAIN, "MedVisionLlama": -0.04}
    order = {"Anterior": GAIN, "Posterior": last, "foreground": level, "whole": GAIN}
    for run in study.runs:
        log_regions(output, run, order)
    table, notes = ranking_table(read(tmp_path, study))
    assert notes == []
    found: dict[str, dict[str, float]] = {}
    for row in as_dicts(table):
        found.setdefault(row["Over"], {})[row["Model"]] = float(row["Mean rank"])
    # A constant gain on nine cases beats: z = 2.67. Ranks are then those of the gains.
    assert found == {
        "All labels of Task04": {"MedVisionLlama": 2.0, "random block": 1.5, "ViT-Baseline": 2.5},
        "Task04 Anterior": {"MedVisionLlama": 1, "random block": 2, "ViT-Baseline": 3},
        "Task04 Posterior": {"MedVisionLlama": 3, "random block": 1, "ViT-Baseline": 2},
        "Task04 foreground": dict.fromkeys(GAIN, 2.0),
    }
    first = next(row for row in as_dicts(table) if row["Over"] == "Task04 Anterior")
    assert first["Model"] == "MedVisionLlama"
    assert first["95 % of bootstrap ranks"] == "1.00 to 1.00"
    assert (first["First in (%)"], first["Models beaten"], first["n"]) == ("100", "2", "9")
    assert first["Kendall's τ"] == "1"
    assert to_latex(table).isascii()  # or LaTeX stops at the Greek letter


def test_a_model_without_a_common_fold_is_not_ranked_and_named(tmp_path: Path) -> None:
    study, output = load_study(write_study(tmp_path)), tmp_path / "runs"
    for run in study.runs:
        if (run.label == "MedVisionLlama") == (run.config.data.fold == 1):
            log_run(output, spool(output), run, cases(9))
    table, (note,) = ranking_table(read(tmp_path, study))
    assert not table.rows
    assert "Task04_Hippocampus is left out" in note
    assert "MedVisionLlama" in note
