import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.phantom import PHANTOM_TASKS, main, make_phantom_task
from mvl_dist.errors import UserError
from mvl_dist.tasks import TASKS
from tests.data_prep.tiny import tree

TUMOUR, LESION = PHANTOM_TASKS


def load(root: Path, task: str, case: str) -> tuple[nib.Nifti1Image, np.ndarray]:
    label = nib.load(root / task / "labelsTr" / f"{case}.nii.gz")
    return nib.load(root / task / "imagesTr" / f"{case}.nii.gz"), np.asarray(label.dataobj)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_phantom_task(tmp_path / name, LESION, cases=2, seed=seed)
    path = f"{LESION.name}/imagesTr/lesion_002.nii.gz"
    a, b, c = ((tmp_path / name / path).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_second_run_changes_nothing_and_other_settings_are_refused(tmp_path: Path) -> None:
    assert main(["--msd-root", str(tmp_path), "--cases", "1"]) == 0
    before = tree(tmp_path)
    assert main(["--msd-root", str(tmp_path), "--cases", "1"]) == 0
    assert tree(tmp_path) == before
    with pytest.raises(UserError, match="Task91_PhantomTumour: holds"):
        main(["--msd-root", str(tmp_path), "--cases", "2"])


def test_no_phantom_passes_for_a_real_task() -> None:
    assert not {task.name for task in PHANTOM_TASKS} & set(TASKS)
    assert not {task.name[:6] for task in PHANTOM_TASKS} & {name[:6] for name in TASKS}


def test_tumours_are_nested_on_an_exact_zero_background(phantom_root: Path) -> None:
    for number in range(1, 9):
        image, label = load(phantom_root, TUMOUR.name, f"tumour_{number:03d}")
        values = np.asarray(image.dataobj)
        assert values.shape == (*label.shape, 4)
        assert set(np.unique(label)) == {0, 1, 2, 3}
        assert 0.2 < (values == 0).all(axis=3).mean() < 0.8
        assert not (values[label > 0] == 0).any()
        # label 3 never touches what is outside of 2 and 3
        inner = label == 3
        for axis in range(3):
            for step in (-1, 1):
                assert (np.roll(label, step, axis)[inner] >= 2).all()


def test_lesions_lie_in_the_organ_and_hu_are_hu(phantom_root: Path) -> None:
    shifts = set()
    for number in range(1, 9):
        image, label = load(phantom_root, LESION.name, f"lesion_{number:03d}")
        hu = image.get_fdata()
        shifts.add(float(image.dataobj.inter))
        assert image.header.get_data_dtype() == np.int16
        assert (label == 2).sum() > 20
        assert hu[0, 0, 0] < -900
        assert 100 < hu[label == 1].mean() < 130
        assert 50 < hu[label == 2].mean() < 85
    assert shifts == {0.0, -1024.0}


def test_headers_vary_as_real_ones_do(phantom_root: Path) -> None:
    orientations, oblique = set(), set()
    for path in sorted(phantom_root.glob("*/imagesTr/*.nii.gz")):
        image = nib.load(path)
        orientations.add("".join(nib.aff2axcodes(image.affine)))
        oblique.add(bool(nib.affines.obliquity(image.affine).max() > 1e-3))
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-2)
        assert image.header.get_xyzt_units()[0] == "mm"
    assert orientations == {"LPS", "LAS", "RAS"}
    assert oblique == {True, False}


def test_dataset_json_is_like_msd(phantom_root: Path) -> None:
    dataset = json.loads((phantom_root / LESION.name / "dataset.json").read_text())
    assert dataset["modality"] == {"0": "CT"}
    assert dataset["labels"] == {"0": "background", "1": "organ", "2": "lesion"}
    assert dataset["numTraining"] == len(dataset["training"]) == 8
