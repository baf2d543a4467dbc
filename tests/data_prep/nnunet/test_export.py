"""What nnunetv2 is given. The package itself is optional."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.nnunet.export import export
from data_prep.nnunet.layout import dataset_name
from mvl_dist.errors import UserError
from mvl_dist.splits import make_split
from tests.data_prep.nnunet.exported import CT, MRI, Exported, exported
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny, scan, tree, write_nifti


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
