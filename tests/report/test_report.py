"""`mvl report` as a user calls it: the page and its files, and one line for every mistake."""

import base64
import gzip
import re
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from mlflow import MlflowClient

from mvl_dist.cli import main
from mvl_dist.report.arrange import PARENT, arrange
from mvl_dist.report.costs import device_hours
from mvl_dist.report.results import Results
from mvl_dist.report.source import Source
from mvl_dist.report.viewer import error_map, label_map, nifti
from mvl_dist.study.grid import load_study
from tests.report.logged import cases, log_run, log_study, write_study
from tests.report.pictured import TASK, log_pictured, phantom_study
from tests.servers import free_port


@pytest.fixture(scope="module")
def runs(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.yaml and runs of it in MLflow; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("report")
    path = phantom_study(folder)
    log_pictured(folder / "runs", f"sqlite:///{folder / 'runs' / 'mlflow.db'}", path, phantom_store)
    return folder


@pytest.fixture(scope="module")
def out(runs: Path) -> Path:
    """The report of these runs, which are arranged in MLflow as well."""
    out = runs / "out"
    arguments = ["--experiment", "trial", "--study", str(runs / "trial.yaml"), "--arrange"]
    assert main(["report", *arguments, "--output", str(runs / "runs"), "--out", str(out)]) == 0
    return out


def test_the_page_needs_nothing_from_elsewhere(out: Path) -> None:
    page = (out / "index.html").read_text()
    # Of what a browser loads by itself, all is in the page.
    for address in re.findall(r"<(?:img|script|link)[^>]*(?:src|href)=\"([^\"]{1,60})", page):
        assert address.startswith("data:")
    linked = re.findall(r"<a href=\"((?:tables|figures)/[^\"]+)\"", page)
    assert len(linked) >= 2 * 12
    assert all((out / name).stat().st_size > 100 for name in linked)
    files = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert files == {"index.html", *linked}
    assert not list(out.rglob(".partial*"))


def test_every_figure_of_the_paper_is_there_in_both_formats(out: Path) -> None:
    for name in ("figure2_Task91", "figure3_Task91", "figure4", "figure5", "forest"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text()[:1000]


def test_few_cases_are_called_too_few(out: Path) -> None:
    assert "Cannot be said" in (out / "index.html").read_text()


def test_regions_stand_by_themselves(out: Path) -> None:
    table = (out / "tables" / "regions.csv").read_text()
    assert "edema" in table
    assert "mean of regions" not in table


def test_ranking_and_out_of_fold_track_stand_in_the_page(out: Path) -> None:
    page = (out / "index.html").read_text()
    for name in ("ranking", "out_of_fold"):
        assert f'<section class="table" id="{name}">' in page
        assert "ViT-Baseline" in (out / "tables" / f"{name}.csv").read_text()
        assert "MedVisionLlama" in (out / "tables" / f"{name}.tex").read_text()


def test_device_hours_come_from_the_curves(runs: Path, tmp_path: Path) -> None:
    study = load_study(runs / "trial.yaml")
    source = Source(f"sqlite:///{runs / 'runs' / 'mlflow.db'}", tmp_path)
    results = Results(source, [study], ["trial"])
    slot = results.of("Table 2")[0]
    # 8 cases: 1 test, 2 validation, 5 train, filled up to 8 by batches of 4; two epochs.
    assert device_hours(results, slot) == pytest.approx(2 * (8 * 0.5 + 2 * 0.25) / 3600)


def test_mlflow_answers_who_is_best_and_what_it_got_wrong(
    runs: Path, out: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{runs / 'runs' / 'mlflow.db'}"
    client = MlflowClient(uri)
    results = Results(Source(uri, tmp_path), [load_study(runs / "trial.yaml")], ["trial"])
    (line,) = arrange(results, "trial", out / "index.html")  # again: the same parent
    assert "over 4 runs" in line
    (parent,) = client.search_runs(["1"], "tags.`mvl.role` = 'parent'")
    children = client.search_runs(["1"], f"tags.`{PARENT}` = '{parent.info.run_id}'")
    assert len(children) == 4
    dice = {run.info.run_id: run.data.tags["model"] for run in children}
    assert parent.data.tags["best_run"] in dice
    note = parent.data.tags["mlflow.note.content"]
    assert f"Best on {TASK}" in note
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"leaderboard.json", "failures.json", "report"}
    kind = client.get_experiment_by_name("trial").tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


# ---------------------------------------------------------------------------------- the viewer


def test_a_volume_reaches_the_viewer_in_its_place(tmp_path: Path) -> None:
    volume = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    file = tmp_path / "x.nii.gz"
    file.write_bytes(base64.b64decode(nifti(volume, (3.0, 2.0, 1.0))))
    image = nibabel.load(file)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume)
    # A grid of half the resolution over the same extent begins at the same corner.
    coarse = nibabel.Nifti1Image.from_bytes(
        gzip.decompress(base64.b64decode(nifti(volume[:1], (6.0, 2.0, 1.0))))
    )
    corner = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(coarse.affine @ corner, image.affine @ corner)


def test_of_overlapping_regions_the_smaller_is_on_top() -> None:
    masks = np.zeros((2, 1, 1, 3), bool)
    masks[0, ..., 1], masks[1] = True, True
    assert label_map(masks).ravel().tolist() == [2, 1, 2]


def test_errors_are_missed_false_and_of_another_region() -> None:
    predicted, reference = np.zeros((2, 1, 1, 5), bool), np.zeros((2, 1, 1, 5), bool)
    reference[0, ..., 1] = predicted[0, ..., 1] = True
    reference[0, ..., 2] = True
    predicted[1, ..., 3] = True
    reference[0, ..., 4] = predicted[1, ..., 4] = True
    assert error_map(predicted, reference).ravel().tolist() == [0, 0, 1, 2, 3]


def test_names_from_the_data_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    path = write_study(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    log_study(tmp_path / "runs", uri, path, lambda run: {**cases(5), evil: 0.1})
    arguments = ["--experiment", "trial", "--study", str(path), "--output", str(tmp_path / "runs")]
    assert main(["report", *arguments, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "alert(1)" in page
    assert evil not in page
    # Nothing was scored on validation cases.
    assert "mvl evaluate RUN ... --split validation" in page
    assert not list((tmp_path / "out" / "tables").glob("out_of_fold*"))


# ------------------------------------------------------------------------------------ bad input


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of `mvl report`."""
    assert main(["report", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_an_experiment_that_does_not_exist(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--output", str(runs / "runs"), "--out", str(tmp_path / "out"))
    line = said(capsys, "--experiment", "trail", *where)
    assert "no experiment 'trail'" in line
    assert "did you mean trial?" in line
    line = said(
        capsys, "--experiment", "x", "--output", str(tmp_path), "--out", str(tmp_path / "o")
    )
    assert "no experiment 'x'" in line
    assert "MLFLOW_TRACKING_URI" in line
    assert not (tmp_path / "out").exists()


def test_an_empty_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").create_experiment("bare")
    where = ("--output", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "experiment 'bare' at sqlite:" in (line := said(capsys, "--experiment", "bare", *where))
    assert "is empty: train its runs with 'mvl study run'" in line


def test_runs_of_another_study(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--output", str(runs / "runs"), "--out", str(tmp_path / "out"))
    line = said(capsys, "--experiment", "trial", *where)
    assert "paper.yaml" in line
    assert "--study" in line


def test_a_server_that_is_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    line = said(capsys, "--experiment", "trial", "--out", str(tmp_path / "out"))
    assert "cannot be asked" in line
    assert "start the server" in line
    assert time.monotonic() - started < 60


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = said(capsys, "--experiment", "trial", "--out", str(tmp_path / "file" / "out"))
    assert "--out" in line
    assert "cannot be written" in line


def test_a_damaged_showcase_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write_study(tmp_path), tmp_path / "runs"
    uri = f"sqlite:///{output / 'mlflow.db'}"

    def damage(tracker: object, folder: Path) -> None:
        (folder / "report").mkdir()
        (folder / "report" / "showcase.npz").write_bytes(b"PK half of a file")
        tracker.artifact(folder / "report" / "showcase.npz", "report")  # type: ignore[attr-defined]

    log_run(output, uri, load_study(path).runs[0], cases(5), finish=damage)
    line = said(
        capsys,
        *("--experiment", "trial", "--study", str(path)),
        *("--output", str(output), "--out", str(tmp_path / "out")),
    )
    assert "showcase.npz" in line
