"""`mvl predict` as a user runs it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, logit

from mvl_dist.cli import main
from mvl_dist.prediction import model_input
from mvl_dist.trained import load_model
from tests.saved import config, save_run

TASK = "Task91_PhantomTumour"


@pytest.fixture(scope="module")
def runs(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folds, whose store is not there any more."""
    root = tmp_path_factory.mktemp("runs")
    store = shutil.copytree(phantom_store, root / "store")
    folders = [root / f"fold{fold}" for fold in range(2)]
    for fold, folder in enumerate(folders):
        save_run(folder, config(store, TASK, fold=fold, seed=fold, target="regions"))
    shutil.rmtree(store)
    return folders


@pytest.fixture
def scans(phantom_root: Path, tmp_path: Path) -> Path:
    """A scan in one file, and one with a file a channel."""
    folder = tmp_path / "scans"
    folder.mkdir()
    one, two, *_ = sorted((phantom_root / TASK / "imagesTr").glob("*.nii.gz"))
    shutil.copyfile(one, folder / "one.nii.gz")
    image = nib.load(two)
    for number, channel in enumerate(nib.four_to_three(image)):
        nib.save(channel, folder / f"two_{number:04d}.nii.gz")
    shutil.copyfile(two, tmp_path / "two.nii.gz")
    return folder


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def mean_of_folds(runs: list[Path], values: np.ndarray) -> np.ndarray:
    """Mean probability of the runs at their grid, its logit on the scan's, in RAS: (x, y, z, R)."""
    answers = []
    for run in runs:
        recipe, model = load_model(run)
        image = model_input(np.ascontiguousarray(values.T), (1, 1, 1), recipe)
        with torch.no_grad():
            answers.append(expit(model(image[None].float()).double().numpy()))
    mean = torch.from_numpy(logit(np.mean(answers, axis=0)))
    native = F.interpolate(mean, values.shape[2::-1], mode="trilinear", align_corners=False)
    return expit(native[0].numpy().T)


def test_folds_are_averaged_and_every_file_lies_over_its_scan(
    runs: list[Path], scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--input", scans, "--output", out, "--probabilities")
    assert predict("--run", *runs, *arguments) == 0
    whole = {"one": scans / "one.nii.gz", "two": tmp_path / "two.nii.gz"}
    for case, scan in (("one", "one.nii.gz"), ("two", "two_0000.nii.gz")):
        like = nib.load(scans / scan)
        both = nib.load(out / f"{case}_probabilities.nii.gz")
        upright = nib.as_closest_canonical(nib.load(whole[case]))
        mean = mean_of_folds(runs, upright.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(nib.as_closest_canonical(both).get_fdata(), mean, atol=1e-5)
        labels = nib.load(out / f"{case}.nii.gz")
        for image in (both, labels):
            assert image.shape[:3] == like.shape[:3]
            np.testing.assert_array_equal(image.affine, like.affine)
        values = np.asarray(labels.dataobj)
        about = json.loads((out / f"{case}.json").read_text())
        names = {name: int(value) for value, name in about["values"].items()}
        voxel_ml = np.prod(like.header.get_zooms()[:3]) / 1000
        core = [names["non-enhancing tumor"], names["enhancing tumour"]]
        for region, members in (("edema", [names["edema"]]), ("tumour core", core)):
            assert about["volumes_ml"][region] == pytest.approx(
                np.isin(values, members).sum() * voxel_ml, rel=1e-5
            )
        channel = about["probability_channels"].index("tumour core")
        assert about["own_mask_volumes_ml"]["tumour core"] == pytest.approx(
            (mean[..., channel] > 0.5).sum() * voxel_ml, rel=1e-3
        )
        assert len(about["models"]) == 2


def test_what_is_there_is_kept_and_what_changed_is_predicted_again(
    runs: list[Path], scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--run", runs[0], "--input", scans, "--output", tmp_path / "out")
    assert predict(*arguments) == 0
    assert "2 predicted, 0 kept" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / ".partial-one.nii.gz-0123").write_text("of a killed start")
    assert predict(*arguments) == 0
    assert "0 predicted, 2 kept" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    shutil.copyfile(tmp_path / "two.nii.gz", scans / "one.nii.gz")
    assert predict(*arguments) == 0
    assert "1 predicted, 1 kept" in capsys.readouterr().out
    assert predict("--run", runs[1], *arguments[2:]) == 1
    assert "is a prediction of another model" in capsys.readouterr().err
    assert predict("--run", runs[1], *arguments[2:], "--overwrite") == 0
    assert "2 predicted, 0 kept" in capsys.readouterr().out


def test_a_bad_scan_is_named_and_the_others_are_predicted_in_several_processes(
    runs: list[Path], scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (scans / "bad.nii.gz").write_bytes((scans / "one.nii.gz").read_bytes()[:1000])
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert predict("--run", runs[0], "--input", scans / "one.nii.gz", "--output", alone) == 0
    capfd.readouterr()
    assert predict("--run", runs[0], "--input", scans, "--output", out, "--workers", 2) == 1
    printed = capfd.readouterr()
    assert "2 predicted, 0 kept, 1 refused" in printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert f"{scans / 'bad.nii.gz'}: truncated gzip file" in errors[0]
    assert "predict: 3/3" in printed.err
    assert not list(out.glob("bad*"))
    assert (out / "one.nii.gz").read_bytes() == (alone / "one.nii.gz").read_bytes()


def test_mistakes_are_one_line_before_anything_is_written(
    runs: list[Path], scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for arguments, reason in (
        (("--run", runs[0], "--input", tmp_path / "empty", "--output", out), "holds no .nii.gz"),
        (("--run", runs[0], "--input", tmp_path / "x", "--output", out), "no such file or folder"),
        (("--run", runs[0], "--input", scans, "--output", scans), "holds the scans"),
        (("--run", runs[0], "--input", scans, "--output", tmp_path / "file"), "cannot write to"),
        (
            ("--run", runs[0], "--input", scans, "--output", out, "--assume-orientation", "up"),
            "--assume-orientation up",
        ),
        (("--run", runs[0], "--input", scans, "--output", out, "--workers", -1), "--workers -1"),
    ):
        assert predict(*arguments) == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        assert reason in errors[0]
    assert not out.exists()


def test_largest_components_are_those_that_the_ensembles_evaluation_scores(
    phantom_root: Path,
    phantom_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folds = [tmp_path / f"fold{fold}" for fold in range(2)]
    for fold, folder in enumerate(folds):
        plan = save_run(folder, config(phantom_store, TASK, fold=fold, seed=fold))
    (case, *_) = plan.split.test
    scan = phantom_root / TASK / "imagesTr" / f"{case}.nii.gz"
    arguments = ("--input", scan, "--output", tmp_path / "out")
    assert predict("--run", *folds, *arguments, "--largest-component") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folds[0] / 'postprocessing.json'} is missing" in line
    assert "mvl evaluate RUN --largest-component" in line
    assert not (tmp_path / "out").exists()

    assert main(["evaluate", *map(str, folds), "--ensemble", "--largest-component"]) == 0
    (together,) = tmp_path.glob("*-ensemble2-*")
    chosen = json.loads((together / "postprocessing.json").read_text())["largest_component"]
    assert chosen["regions"]
    with (together / "ensemble_test_largest_component_cases.csv").open() as file:
        scored = {r["region"]: r for r in csv.DictReader(file) if r["case"] == case}
    copies = [tmp_path / "copy0", tmp_path / "copy1"]
    for fold, copy in zip(folds, copies, strict=True):
        assert main(["export", str(fold), "--output", str(copy)]) == 0
    assert predict("--run", *copies, *arguments, "--largest-component") == 0
    about = json.loads((tmp_path / "out" / f"{case}.json").read_text())
    assert about["largest_component"] == chosen["regions"]
    for region, volume in about["own_mask_volumes_ml"].items():
        assert volume == pytest.approx(float(scored[region]["predicted_ml"]), rel=1e-6)

    capsys.readouterr()
    assert predict("--run", *copies, *arguments) == 1  # what is there was cleaned
    assert "another --largest-component" in capsys.readouterr().err
    assert predict("--run", *copies, *arguments, "--overwrite") == 0
    plain = json.loads((tmp_path / "out" / f"{case}.json").read_text())
    assert plain["own_mask_volumes_ml"] != about["own_mask_volumes_ml"]
    shutil.copyfile(copies[0] / "postprocessing.json", copies[1] / "postprocessing.json")
    assert predict("--run", *copies, *arguments, "--largest-component") == 1
    assert "copy1/postprocessing.json is of other weights" in capsys.readouterr().err


def test_models_of_different_questions_are_not_averaged(
    runs: list[Path],
    phantom_store: Path,
    scans: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_run(tmp_path / "binary", config(phantom_store, TASK, target="binary"))
    arguments = ("--input", scans, "--output", tmp_path / "out")
    assert predict("--run", runs[0], tmp_path / "binary", *arguments) == 1
    assert "cannot be averaged" in capsys.readouterr().err
