"""The bridge to nnunetv2: what it is given, and what comes back. The package itself is optional."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.nnunet.collect import read_prediction, score
from data_prep.nnunet.export import export
from data_prep.nnunet.labels import labels_for
from data_prep.nnunet.layout import Export, Layout, dataset_name, find_export, read_export
from mvl_dist.cli import main
from mvl_dist.errors import UserError
from mvl_dist.splits import make_split
from mvl_dist.store import Manifest, read_array, read_manifest
from mvl_dist.tasks import TASKS, Task
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny, scan, tree, write_nifti

MRI, CT = "Task91_PhantomTumour", "Task93_PhantomLesion"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A task, its store, and its export."""

    root: Path
    store: Path
    layout: Layout
    export: Export

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.store, self.export.task)

    def source(self, part: str, case: str) -> nib.Nifti1Image:
        return nib.load(self.root / self.export.task / part / f"{case}.nii.gz")

    def written(self, part: str, name: str) -> nib.Nifti1Image:
        return nib.load(self.layout.raw / part / f"{name}.nii.gz")

    def dataset(self) -> dict[str, object]:
        return dict(json.loads((self.layout.raw / "dataset.json").read_text()))


def exported(root: Path, store: Path, task: str, output: Path, target: str = "labels") -> Exported:
    layout, done, _ = export(store, root, task, output, target, workers=1)
    return Exported(root, store, layout, done)


@pytest.fixture(scope="module")
def phantoms(
    phantom_root: Path, phantom_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Both phantom tasks exported; not to be changed by a test."""
    output = tmp_path_factory.mktemp("nnunet")
    return {task: exported(phantom_root, phantom_store, task, output) for task in (MRI, CT)}


@pytest.fixture
def tiny(tmp_path: Path) -> Exported:
    """The tiny task exported, one scan LPS: a test may damage everything."""
    folder = make_tiny(tmp_path / "msd")
    save_lps(folder)
    convert_tiny(folder, tmp_path / "store")
    return exported(tmp_path / "msd", tmp_path / "store", NAME, tmp_path / "out")


def save_lps(folder: Path) -> None:
    """Turn every scan to LPS and move it, so that no axis can be right by luck."""
    affine = nib.affines.from_matvec(np.diag([-1, -1, 2]), [40, 50, -30])
    for number, case in enumerate(CASES):
        for part, values in zip(("imagesTr", "labelsTr"), scan(number, False), strict=True):
            write_nifti(folder / part / f"{case}.nii.gz", values, affine)


# ----------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("task", [MRI, CT])
def test_scans_and_labels_are_the_sources_in_value_and_geometry(
    phantoms: dict[str, Exported], task: str
) -> None:
    given = phantoms[task]
    channels = len(given.manifest.task.modalities)
    for case in given.manifest.cases:
        part = "Ts" if case in given.export.test else "Tr"
        image, label = (given.source(f"{kind}Tr", case) for kind in ("images", "labels"))
        values = image.get_fdata().reshape(*image.shape[:3], channels)
        for channel in range(channels):
            out = given.written(f"images{part}", f"{case}_{channel:04d}")
            np.testing.assert_array_equal(out.get_fdata(), values[..., channel])
            np.testing.assert_array_equal(out.affine, image.affine)
            assert out.get_data_dtype() == image.get_data_dtype()
            assert out.header.get_zooms() == image.header.get_zooms()[:3]
            assert out.header["qform_code"] == image.header["qform_code"]
        out = given.written(f"labels{part}", case)
        np.testing.assert_array_equal(np.asanyarray(out.dataobj), np.asanyarray(label.dataobj))
        np.testing.assert_array_equal(out.affine, image.affine)
        assert out.get_data_dtype() == np.uint8


def test_a_3d_scan_is_the_same_file(phantoms: dict[str, Exported]) -> None:
    given = phantoms[CT]
    case = given.export.folds[0]["train"][0]
    copy = given.layout.raw / "imagesTr" / f"{case}_0000.nii.gz"
    source = given.root / CT / "imagesTr" / f"{case}.nii.gz"
    assert copy.read_bytes() == source.read_bytes()


def test_a_scaled_4d_scan_keeps_its_stored_integers(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "msd")
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["modality"] = {"0": "T2", "1": "ADC"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, case in enumerate(CASES):
        values = np.stack([scan(number, False)[0], scan(number, False)[0] // 2], axis=-1)
        image = nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
        image.header.set_slope_inter(2.0, -7.0)
        nib.save(image, folder / "imagesTr" / f"{case}.nii.gz")
    convert_tiny(folder, tmp_path / "store")
    given = exported(tmp_path / "msd", tmp_path / "store", NAME, tmp_path / "out")
    case = given.export.folds[0]["train"][0]
    source = given.source("imagesTr", case)
    for channel in (0, 1):
        out = given.written("imagesTr", f"{case}_{channel:04d}")
        assert (out.dataobj.slope, out.dataobj.inter) == (2.0, -7.0)
        stored = source.dataobj.get_unscaled()[..., channel]
        np.testing.assert_array_equal(out.dataobj.get_unscaled(), stored)


def test_a_header_without_orientation_gets_the_one_that_the_store_assumed(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "msd")
    for number, case in enumerate(CASES):
        for part, values in zip(("imagesTr", "labelsTr"), scan(number, False), strict=True):
            image = nib.Nifti1Image(values, None)
            image.header.set_zooms((1, 1, 2))
            path = folder / part / f"{case}.nii.gz"
            path.write_bytes(gzip.compress(image.to_bytes()))
    convert_tiny(folder, tmp_path / "store")
    given = exported(tmp_path / "msd", tmp_path / "store", NAME, tmp_path / "out")
    case = given.export.test[0]
    for part, name in (("imagesTs", f"{case}_0000"), ("labelsTs", case)):
        out = given.written(part, name)
        assert out.header["sform_code"] == 1
        np.testing.assert_allclose(out.affine, given.manifest.cases[case].source_affine)


def test_folds_and_held_out_cases_are_ours(phantoms: dict[str, Exported]) -> None:
    for task, given in phantoms.items():
        manifest = given.manifest
        raw = given.layout.raw
        names = {path.name[:-12] for path in (raw / "imagesTr").iterdir()}
        assert not names & set(manifest.test_cases)
        assert names | set(manifest.test_cases) == set(manifest.cases)
        held = {path.name[:-12] for path in (raw / "imagesTs").iterdir()}
        assert held == set(manifest.test_cases)
        folds = json.loads((given.layout.preprocessed / "splits_final.json").read_text())
        assert len(folds) == 5
        for fold, cases in enumerate(folds):
            split = make_split(tuple(manifest.cases), task, fold, seed=manifest.split_seed)
            assert set(cases["train"]) == set(split.train)
            assert set(cases["val"]) == set(split.validation)
        assert given.dataset()["numTraining"] == len(names)


def test_nnunet_normalises_ct_as_ct(phantoms: dict[str, Exported]) -> None:
    assert phantoms[CT].dataset()["channel_names"] == {"0": "CT"}
    names = dict(phantoms[MRI].dataset()["channel_names"])  # type: ignore[call-overload]
    assert list(names.values()) == list(phantoms[MRI].manifest.task.modalities)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("Task04_Hippocampus", "Dataset004_Hippocampus"),
        ("Task120_Two words", "Dataset120_Two_words"),
    ],
)
def test_a_task_keeps_its_number(task: str, name: str) -> None:
    assert dataset_name(task) == name


def test_a_task_without_a_number_draws_one() -> None:
    name = dataset_name("Lesions")
    assert name == dataset_name("Lesions")
    assert 500 <= int(name[7:10]) < 1000


def test_values_are_renumbered_without_a_gap_and_brought_back() -> None:
    task = Task("Task50_Gaps", ("CT",), ((7, "lesion"), (3, "organ")), "ct", 1.0)
    labels = labels_for(task, "labels")
    assert labels.values == ((3, 1), (7, 2))
    assert labels.entries == {"background": 0, "organ": 1, "lesion": 2}
    assert labels.class_order == ()
    assert labels_for(task, "binary").values == ((7, 1), (3, 1))


def test_regions_are_painted_from_the_outside_in() -> None:
    labels = labels_for(TASKS["Task01_BrainTumour"], "regions")
    assert labels.entries == {
        "background": 0,
        "whole tumour": [1, 2, 3],
        "tumour core": [2, 3],
        "edema": 1,
        "non-enhancing tumor": 2,
        "enhancing tumour": 3,
    }
    # Heads that agree with each other give the label map back, voxel by voxel.
    assert labels.class_order == (1, 2, 1, 2, 3)
    for value in range(4):
        painted = 0
        regions = list(labels.entries.values())[1:]
        for region, paint in zip(regions, labels.class_order, strict=True):
            if value in (region if isinstance(region, list) else [region]):
                painted = paint
        assert painted == value


def test_names_that_nnunet_reserves_are_told_apart() -> None:
    task = Task("Task50_Odd", ("CT",), ((1, "ignore"), (2, "a"), (3, "a")), "ct", 1.0)
    assert labels_for(task, "labels").entries == {
        "background": 0,
        "ignore (1)": 1,
        "a": 2,
        "a (3)": 3,
    }


def test_binary_merges_all_labels(tiny: Exported, tmp_path: Path) -> None:
    given = exported(tiny.root, tiny.store, NAME, tmp_path / "binary", "binary")
    assert given.dataset()["labels"] == {"background": 0, "foreground": 1}
    case = given.export.folds[0]["train"][0]
    merged = np.asanyarray(given.written("labelsTr", case).dataobj)
    source = np.asanyarray(given.source("labelsTr", case).dataobj)
    np.testing.assert_array_equal(merged, source > 0)


def test_a_second_export_does_nothing_and_a_damaged_one_is_mended(tiny: Exported) -> None:
    before = tree(tiny.layout.output)
    assert not export(tiny.store, tiny.root, NAME, tiny.layout.output, "labels", 1)[2]
    assert tree(tiny.layout.output) == before
    lost = next((tiny.layout.raw / "imagesTr").iterdir())
    lost.unlink()
    assert export(tiny.store, tiny.root, NAME, tiny.layout.output, "labels", 1)[2]
    assert lost.exists()
    assert not list(tiny.layout.output.rglob(".partial-*"))


def change_a_scan(given: Exported) -> None:
    case = given.export.folds[0]["train"][0]
    path = given.root / NAME / "imagesTr" / f"{case}.nii.gz"
    write_nifti(path, scan(99, False)[0])
    shutil.rmtree(given.layout.raw)


def forget_a_case(given: Exported) -> None:
    path = given.root / NAME / "dataset.json"
    dataset = json.loads(path.read_text())
    del dataset["training"][3]
    path.write_text(json.dumps(dataset))
    shutil.rmtree(given.layout.raw)


def put_own_data_there(given: Exported) -> None:
    (given.layout.raw / "mvl_export.json").unlink()


def take_the_number(given: Exported) -> None:
    (given.layout.output / "nnUNet_raw" / "Dataset050_Other").mkdir()


def change_the_folds(given: Exported) -> None:
    (given.layout.preprocessed / "splits_final.json").write_text("[]")


def put_a_file_in_the_way(given: Exported) -> None:
    shutil.rmtree(given.layout.output)
    given.layout.output.write_text("")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_a_scan, "not the file that the store was converted from"),
        (forget_a_case, "does not list case tiny_3"),
        (put_own_data_there, "not by 'mvl nnunet export'"),
        (take_the_number, "has the number of Dataset050_Tiny"),
        (change_the_folds, "other folds than the store's split"),
        (put_a_file_in_the_way, "cannot write to"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tiny: Exported, damage: Callable[[Exported], None], reason: str
) -> None:
    damage(tiny)
    with pytest.raises(UserError, match=reason) as caught:
        export(tiny.store, tiny.root, NAME, tiny.layout.output, "labels", 1)
    assert "\n" not in str(caught.value)
    assert not list(tiny.layout.output.parent.rglob(".partial-*"))


def test_another_target_needs_another_output(tiny: Exported) -> None:
    with pytest.raises(UserError, match="labels there, binary asked for"):
        export(tiny.store, tiny.root, NAME, tiny.layout.output, "binary", 1)


# ----------------------------------------------------------------------------------------- import


def predict(given: Exported, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write a prediction of every held-out case, in the scan's own geometry."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in given.export.test:
        label = given.written("labelsTs", case)
        write_nifti(folder / f"{case}.nii.gz", change(np.asanyarray(label.dataobj)), label.affine)


def scored(given: Exported, predictions: Path) -> dict[tuple[str, str], dict[str, float]]:
    scores = score(
        given.layout.output, given.store, NAME, 0, "3d_fullres", "nnUNetTrainer", predictions
    )
    return {(row["case"], row["region"]): row for row in scores.rows}


def test_a_perfect_prediction_scores_one_in_any_orientation(tiny: Exported, tmp_path: Path) -> None:
    assert {case.source_orientation for case in tiny.manifest.cases.values()} == {"LPS"}
    predict(tiny, tmp_path / "same", lambda label: label)
    for row in scored(tiny, tmp_path / "same").values():
        assert (row["dice"], row["nsd"], row["hd95_mm"]) == (1, 1, 0)
        assert "dice_grid" not in row
    case = tiny.export.test[0]
    label = tiny.written("labelsTs", case)
    (tmp_path / "turned").mkdir()
    nib.save(nib.as_closest_canonical(label), tmp_path / "turned" / f"{case}.nii.gz")
    turned = read_prediction(
        tmp_path / "turned", tiny.manifest.cases[case], tiny.export, tiny.layout
    )
    np.testing.assert_array_equal(turned, read_array(tiny.store, NAME, case, "label_native"))


def test_a_prediction_moved_by_one_slice_scores_the_closed_form(
    tiny: Exported, tmp_path: Path
) -> None:
    predict(tiny, tmp_path / "moved", lambda label: np.roll(label, 1, axis=2))
    row = scored(tiny, tmp_path / "moved")[tiny.export.test[0], "organ"]
    # The organ is slices 1 to 3 of 20 voxels each without the lesion's 2 in slice 2, so 58 voxels;
    # moved by a slice of 2 mm it shares slices 2 and 3, each without the 2 of one of the lesions.
    organ, common = 58, 36
    assert row["dice"] == pytest.approx(2 * common / (2 * organ))
    assert row["hd100_mm"] == pytest.approx(2.0)


def test_renumbered_labels_come_back_as_the_tasks(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "msd")
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["labels"] = {"0": "background", "3": "organ", "7": "lesion"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, case in enumerate(CASES):
        label = np.array([0, 3, 7], np.uint8)[scan(number, False)[1]]
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", label)
    convert_tiny(folder, tmp_path / "store")
    for target in ("labels", "regions", "binary"):
        given = exported(tmp_path / "msd", tmp_path / "store", NAME, tmp_path / target, target)
        assert np.asanyarray(given.written("labelsTs", given.export.test[0]).dataobj).max() <= 2
        predict(given, tmp_path / target / "same", lambda label: label)
        rows = scored(given, tmp_path / target / "same").values()
        assert {row["dice"] for row in rows} == {1}
        regions = {"foreground"} | (set() if target == "binary" else {"organ", "lesion"})
        assert {row["region"] for row in rows} == regions  # type: ignore[comparison-overlap]


def lose(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def crop(path: Path) -> None:
    label = nib.load(path)
    write_nifti(path, np.asanyarray(label.dataobj)[:-1], label.affine)


def shift(path: Path) -> None:
    label = nib.load(path)
    affine = label.affine.copy()
    affine[0, 3] += 1
    write_nifti(path, np.asanyarray(label.dataobj), affine)


def invent_a_label(path: Path) -> None:
    label = nib.load(path)
    write_nifti(path, np.asanyarray(label.dataobj) + np.uint8(3), label.affine)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose, "has no prediction"),
        (cut_short, "truncated gzip file"),
        (crop, "6x10x7 voxels .D, H, W. where the scan has 6x10x8"),
        (shift, "its affine lies up to 1 mm from the scan's"),
        (invent_a_label, "label values 3, 4, 5 are not among those exported"),
    ],
)
def test_a_bad_prediction_is_one_line_with_its_case(
    tiny: Exported, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / "predictions"
    predict(tiny, folder, lambda label: label)
    case = tiny.export.test[0]
    damage(folder / f"{case}.nii.gz")
    with pytest.raises(UserError, match=reason) as caught:
        scored(tiny, folder)
    assert f"case {case}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_predictions_of_another_model_or_of_other_data_are_refused(
    tiny: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "predictions"
    with pytest.raises(UserError, match="no such folder of predictions"):
        scored(tiny, folder)
    predict(tiny, folder, lambda label: label)
    noted = {
        "nnunetv2": "2.8.1",
        "trainer": "nnUNetTrainer",
        "configuration": "3d_fullres",
        "plans": "nnUNetPlans",
        "fold": 1,
        "sources": tiny.export.sources,
    }
    (folder / "mvl_predictions.json").write_text(json.dumps(noted))
    with pytest.raises(UserError, match="these predictions are of fold 1, not 0"):
        scored(tiny, folder)
    (folder / "mvl_predictions.json").unlink()
    other = tmp_path / "other"
    convert_tiny(tiny.root / NAME, other, split_seed=5)
    with pytest.raises(UserError, match="exported from other data or another split"):
        score(tiny.layout.output, other, NAME, 0, "3d_fullres", "nnUNetTrainer", folder)


# ------------------------------------------------------------------------------- the command line


def test_from_scans_to_a_run_beside_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = make_tiny(tmp_path / "msd")
    convert_tiny(folder, tmp_path / "store")
    store, output, runs = (str(tmp_path / name) for name in ("store", "out", "runs"))
    about = ["--store", store, "--task", "50", "--output", output]
    assert main(["nnunet", "export", *about, "--msd-root", str(folder.parent)]) == 0
    assert "7 training and 1 held-out cases" in capsys.readouterr().out
    layout, done = find_export(Path(output), "50")
    given = Exported(folder.parent, tmp_path / "store", layout, done)
    predict(given, tmp_path / "predictions", lambda label: label)
    arguments = [*about, "--fold", "0", "--runs", runs]
    arguments += ["--predictions", str(tmp_path / "predictions")]
    assert main(["nnunet", "import", *arguments]) == 0
    assert "organ" in capsys.readouterr().out
    (run,) = (tmp_path / "runs" / NAME).glob("nnunetv2-fold0-*")
    lines = (run / "test_cases.csv").read_text().splitlines()
    assert lines[0].split(",")[:3] == ["task", "model", "fold"]
    assert len(lines) == 1 + 3 * len(given.export.test)  # organ, lesion, and both as foreground

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (tracked,) = client.search_runs([client.get_experiment_by_name("mvl-dist").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test_dice/organ"] == 1
    tags = tracked.data.tags
    assert (tags["model"], tags["task"], tags["fold"]) == ("nnunetv2", NAME, "0")
    assert tags["data_checksum"] == given.manifest.checksum
    assert tags["nnunet.trainer"] == "nnUNetTrainer"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "--fold", "0"], "holds no export of Task04_Hippocampus"),
        (["import", "--fold", "0", "--runs", "r", "--store", "s"], "no store at s"),
        (["export", "--store", "s", "--msd-root", "m"], "no store at s"),
    ],
)
def test_a_step_out_of_order_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["nnunet", *arguments, "--task", "4", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_without_the_package_the_command_that_installs_it(
    tiny: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = str(tiny.layout.output)
    assert main(["nnunet", "train", "--output", output, "--task", "50", "--fold", "0"]) == 1
    assert "pip install -e '.[nnunet]'" in capsys.readouterr().err


def test_the_packages_planner_accepts_the_export_and_keeps_our_folds(tiny: Exported) -> None:
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed: pip install -e '.[nnunet]'")
    from data_prep.nnunet.run import Training, _command, _plan

    training = Training(0, "3d_fullres", "nnUNetTrainer", "cpu", workers=1)
    folds = (tiny.layout.preprocessed / "splits_final.json").read_text()
    _plan(tiny.layout, tiny.export, training, _command("plan_and_preprocess"))
    assert (tiny.layout.preprocessed / "splits_final.json").read_text() == folds
    plans = json.loads((tiny.layout.preprocessed / "nnUNetPlans.json").read_text())
    assert "3d_fullres" in plans["configurations"]
    assert read_export(tiny.layout.raw / "mvl_export.json") == tiny.export
