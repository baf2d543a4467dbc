"""Cells and comparisons, against numbers that are computed here by hand."""

import csv
import io
import statistics
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mvl_dist.report.layout import to_csv, to_latex
from mvl_dist.report.results import MEAN_OF_REGIONS, Results, headline, with_headline
from mvl_dist.report.source import Source
from mvl_dist.report.stats import compared
from mvl_dist.report.tables import all_tables
from mvl_dist.study.grid import Study, StudyRun, load_study
from tests.report.logged import cases, log_run, log_study, rows_of, spool, write_study


def read(folder: Path, study: Study, uri: str = "") -> Results:
    source = Source(uri or spool(folder / "runs"), folder / "fetched")
    return Results(source, [study], [study.runs[0].config.experiment])


def by_fold(run: StudyRun) -> dict[str, float]:
    """MedVisionLlama is 0.04 better; the second fold is 0.02 better than the first."""
    shift = 0.04 * (run.label == "MedVisionLlama") + 0.02 * run.config.data.fold
    return cases(9, shift)


def test_a_cell_is_over_cases_averaged_over_folds_first(tmp_path: Path) -> None:
    study = log_study(tmp_path / "runs", spool(tmp_path / "runs"), write_study(tmp_path), by_fold)
    (table, *_) = all_tables(read(tmp_path, study))
    rows = {(r["Metric"], r["Model"]): r for r in csv.DictReader(io.StringIO(to_csv(table)))}
    ours = rows["Dice", "ViT-Baseline"]
    expected = [value + 0.01 for value in cases(9).values()]  # the mean of both folds
    assert float(ours["Task04"]) == pytest.approx(statistics.mean(expected), abs=1e-6)
    assert float(ours["Task04 SD"]) == pytest.approx(statistics.stdev(expected), rel=1e-5)
    assert (ours["Task04 n"], ours["Task04 runs"], ours["Task04 runs expected"]) == ("9", "2", "2")
    assert ours["Task04 paper"] == "0.72 ±0.04"
    assert ours["Task01"] == ""
    assert ours["Task01 paper"] == "0.74 ±0.03"
    assert rows["HD95", "MedVisionLlama"]["Task04 paper"] == "9.77* ±1.9"
    assert rows["HD95", "ViT-Baseline"]["Task04"] == f"{10 * (1 - statistics.mean(expected)):.6g}"


def test_marks_say_what_both_tests_say(tmp_path: Path) -> None:
    def values(run: StudyRun) -> dict[str, float]:
        # One outlier drowns the mean, not the ranks: Wilcoxon finds it, the t-test does not.
        better = dict.fromkeys(cases(20), 0.001)
        better["case_019"] = -0.5
        return {
            case: dice + better[case] * (run.label == "MedVisionLlama")
            for case, dice in cases(20).items()
        }

    study = log_study(tmp_path / "runs", spool(tmp_path / "runs"), write_study(tmp_path), values)
    (table, *_) = all_tables(read(tmp_path, study))
    assert [cell.marks for cell in table.rows[1] if not isinstance(cell, str)][3] == "*"


def test_a_part_finished_study_makes_part_filled_tables(tmp_path: Path) -> None:
    def values(run: StudyRun) -> dict[str, float] | None:
        if run.label == "MedVisionLlama" and run.config.data.fold == 1:
            return None
        return by_fold(run) if run.label != "random block" else None

    study = log_study(tmp_path / "runs", spool(tmp_path / "runs"), write_study(tmp_path), values)
    results = read(tmp_path, study)
    assert (results.present, results.expected) == (3, 6)
    (table, *_) = all_tables(results)
    cell = next(c for c in table.rows[1] if not isinstance(c, str) and c.n)
    assert cell.basis == "n=9, 1/2 runs"
    # On the fold that both have the difference is 0.04; the means of all runs differ by 0.03.
    pair = compared(
        results, results.of(model="ViT-Baseline"), results.of(model="MedVisionLlama"), "dice"
    )
    assert pair is not None
    assert pair.median_difference == pytest.approx(0.04)


def test_a_finished_run_without_rows_and_an_unfinished_one_are_missing(tmp_path: Path) -> None:
    output, study = tmp_path / "runs", load_study(write_study(tmp_path))
    log_run(output, spool(output), study.runs[0], cases(5))
    log_run(output, spool(output), study.runs[1], {})
    log_run(output, spool(output), study.runs[2], cases(5), status="FAILED")
    results = read(tmp_path, study)
    assert results.present == 1
    assert any("test_cases.csv" in note for note in results.notes)
    assert results.unfinished["FAILED"] == 1


def test_runs_on_other_data_are_left_out_and_named(tmp_path: Path) -> None:
    output, study = tmp_path / "runs", load_study(write_study(tmp_path))
    for index, run in enumerate(study.runs):
        log_run(output, spool(output), run, cases(5), data_checksum="old" if index == 2 else "new")
    results = read(tmp_path, study)
    assert results.present == 5
    assert any("Task04_Hippocampus: 1 runs" in note for note in results.notes)


def test_mlflow_and_a_spool_give_the_same_report(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    study = log_study(tmp_path / "runs", spool(tmp_path / "runs"), path, by_fold)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log_study(tmp_path / "others", uri, path, by_fold)
    assert len(MlflowClient(uri).search_runs(["1"])) == 6
    texts = [
        [to_csv(table) + to_latex(table) for table in all_tables(read(tmp_path, study, address))]
        for address in ("", uri)
    ]
    assert texts[0] == texts[1]


def test_the_headline_region_is_what_the_paper_scores(tmp_path: Path) -> None:
    run = load_study(write_study(tmp_path)).runs[0]
    labels = [*rows_of(run, {"a": 0.5}, "Anterior"), *rows_of(run, {"a": 0.7}, "Posterior")]
    assert headline([*labels, *rows_of(run, {"a": 0.6}, "foreground")]) == "foreground"
    assert (
        headline([*labels, *rows_of(run, {"a": 0.6}, "whole hippocampus")]) == "whole hippocampus"
    )
    extended = with_headline(labels)
    assert headline(extended) == MEAN_OF_REGIONS
    assert extended[-1]["dice"] == pytest.approx(0.6)


def test_latex_has_no_bare_special_characters(tmp_path: Path) -> None:
    study = log_study(tmp_path / "runs", spool(tmp_path / "runs"), write_study(tmp_path), by_fold)
    for table in all_tables(read(tmp_path, study)):
        text = to_latex(table)
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        assert "±" not in text
        assert "†" not in text
        assert all(line.endswith(r"\\") for line in body.splitlines()[1:])
        assert all(line.count(" & ") == len(table.columns) - 1 for line in body.splitlines()[1:])
