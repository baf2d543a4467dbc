import csv
import math
from pathlib import Path

import pytest

from mvl_dist.metrics import CONVENTIONS, GRID_METRICS, METRICS
from mvl_dist.score_table import summaries, summarise, table, tracked, write_csv


def test_a_summary_counts_only_the_cases_in_which_a_metric_is_defined() -> None:
    rows = [{"dice": 1.0, "sensitivity": math.nan}, {"dice": 0.5, "sensitivity": 0.4}]
    summary = summarise(rows)
    assert (summary["dice"].mean, summary["dice"].n) == (0.75, 2)
    assert summary["dice"].std == pytest.approx(math.sqrt(0.125), rel=1e-12)
    assert (summary["sensitivity"].mean, summary["sensitivity"].n) == (0.4, 1)
    assert math.isnan(summary["sensitivity"].std)


def test_a_summary_of_undefined_values_is_undefined_and_of_no_rows_is_empty() -> None:
    summary = summarise([{"dice": math.nan}])["dice"]
    assert math.isnan(summary.mean)
    assert math.isnan(summary.std)
    assert summary.n == 0
    assert summarise([]) == {}
    with pytest.raises(ValueError, match="same metrics"):
        summarise([{"dice": 1.0}, {"nsd": 1.0}])


def test_the_table_shows_n_of_defined_cases() -> None:
    nan = float("nan")
    rows = [
        {"region": "a", **dict.fromkeys((*METRICS, *GRID_METRICS), value)}
        for value in (0.5, 1.0, nan)
    ]
    rows[0] = {**rows[0], "sensitivity_grid": nan}
    text = table(summaries(rows), tolerance_mm=2.0)
    native, grid = (line.split() for line in text.splitlines() if line.startswith("a   "))
    assert native[:5] == ["a", "2", "0.750", "±", "0.354"]
    assert "n=1" in grid  # one case fewer defines the sensitivity
    assert "NSD at 2 mm" in text
    assert "NSD at 1 voxel" in text


def test_the_conventions_stand_under_every_table() -> None:
    rows = [{"region": "a", **dict.fromkeys(METRICS, 0.5)}]  # nnU-Net's have no grid of ours
    text = table(summaries(rows), tolerance_mm=2.0)
    assert "resampled grid" not in text
    assert text.endswith("\n".join(CONVENTIONS))


def test_mlflow_gets_the_mean_and_n_of_every_region() -> None:
    rows = [{"region": "a (b)", **dict.fromkeys(METRICS, value)} for value in (0.5, 1.0)]
    values = tracked(summaries(rows), "test")
    assert (values["test_dice/a _b_"], values["test_n_dice/a _b_"]) == (0.75, 2)


def test_rows_are_written_as_csv(tmp_path: Path) -> None:
    write_csv([{"case": "a", "dice": 0.25}, {"case": "b", "dice": 1.0}], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        assert [row["dice"] for row in csv.DictReader(file)] == ["0.25", "1.0"]
