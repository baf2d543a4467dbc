"""What comes back from nnunetv2, and how it is scored."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.nnunet.collect import read_prediction, score
from mvl_dist.errors import UserError
from mvl_dist.store import read_array
from tests.data_prep.nnunet.exported import Exported, exported, predict
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny, scan, write_nifti


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
