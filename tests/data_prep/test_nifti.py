import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.nifti import read_scan
from data_prep.source import Pair, list_pairs, task_folders
from mvl_dist.errors import UserError
from mvl_dist.tasks import load_task
from tests.data_prep.tiny import CASES, NAME, make_tiny, scan, write_nifti

TURNED = ("RAS", "LPS", "LAS", "PIR", "SLA", "IPL")


def save_turned(folder: Path, case: str, codes: str, affine: np.ndarray) -> None:
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    for part, values in zip(("imagesTr", "labelsTr"), scan(0, ct=False), strict=True):
        image = nib.Nifti1Image(values, affine).as_reoriented(turn)
        write_nifti(folder / part / f"{case}.nii.gz", np.asarray(image.dataobj), image.affine)


def pair_of(folder: Path, case: str) -> Pair:
    return Pair(
        case, folder, *(folder / part / f"{case}.nii.gz" for part in ("imagesTr", "labelsTr"))
    )


@pytest.mark.parametrize("codes", TURNED)
def test_one_scan_saved_in_any_orientation_reads_alike(tmp_path: Path, codes: str) -> None:
    folder = make_tiny(tmp_path)
    task, _ = load_task(folder)
    affine = nib.affines.from_matvec(np.diag([1.0, 1.5, 3.0]), [-20, 30, 5])
    save_turned(folder, CASES[0], codes, affine)
    out = read_scan(pair_of(folder, CASES[0]), task)
    image, label = scan(0, ct=False)
    np.testing.assert_array_equal(out.image, image.T[None])  # D, H, W = z, y, x of RAS+
    np.testing.assert_array_equal(out.label, label.T)
    assert out.spacing_mm == (3.0, 1.5, 1.0)
    assert out.source_orientation == codes
    np.testing.assert_allclose(out.affine, affine)


def test_every_fact_of_a_scan_is_kept(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    task, _ = load_task(folder)
    out = read_scan(pair_of(folder, CASES[1]), task)
    path = folder / "imagesTr" / f"{CASES[1]}.nii.gz"
    source = out.sources["image"]
    assert (source.name, source.bytes) == (f"imagesTr/{CASES[1]}.nii.gz", path.stat().st_size)
    assert source.mtime_ns == path.stat().st_mtime_ns
    import hashlib

    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert out.image.dtype == np.int16  # the file's own: a scan is never copied to float32
    assert out.label.dtype == np.uint8
    assert out.raw_bytes == out.label.size * 3


def test_channels_come_first_and_scaling_is_applied(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    values = np.stack([scan(0, False)[0], scan(1, False)[0]], axis=-1)
    image = nib.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(2.0, -7.0)
    path = folder / "imagesTr" / f"{CASES[0]}.nii.gz"
    nib.save(image, path)
    nib.save(nib.Nifti1Image(scan(0, False)[1], np.eye(4)), pair_of(folder, CASES[0]).label)
    task, dataset = load_task(folder)
    import dataclasses

    task = dataclasses.replace(task, modalities=("T2", "ADC"))
    out = read_scan(pair_of(folder, CASES[0]), task)
    assert out.image.shape == (2, 6, 10, 8)
    np.testing.assert_array_equal(out.image[1], 2.0 * values[..., 1].T - 7.0)
    assert len(list_pairs(folder, dataset)) == len(CASES)


def test_float_labels_of_whole_values_are_fine(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    task, _ = load_task(folder)
    label = scan(0, False)[1]
    write_nifti(folder / "labelsTr" / f"{CASES[0]}.nii.gz", label.astype(np.float32))
    np.testing.assert_array_equal(read_scan(pair_of(folder, CASES[0]), task).label, label.T)


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    task, _ = load_task(folder)
    path = folder / "imagesTr" / f"{CASES[0]}.nii.gz"
    raw = gzip.decompress(path.read_bytes())
    half = len(raw) // 2
    # Of equal size: the length that the last member states is that of the first too.
    path.write_bytes(gzip.compress(raw[:half]) + gzip.compress(raw[half:]))
    np.testing.assert_array_equal(
        read_scan(pair_of(folder, CASES[0]), task).image[0], scan(0, False)[0].T
    )


@pytest.mark.parametrize("dtype", [">i2", "<u2", "i1", "f8", ">f4"])
def test_the_voxels_are_the_file_s_in_any_type(tmp_path: Path, dtype: str) -> None:
    folder = make_tiny(tmp_path)
    task, _ = load_task(folder)
    values = (scan(0, False)[0] // 4).astype(dtype)
    path = folder / "imagesTr" / f"{CASES[0]}.nii.gz"
    write_nifti(path, values)
    image = read_scan(pair_of(folder, CASES[0]), task).image
    np.testing.assert_array_equal(image[0], nib.load(path).get_fdata(dtype=np.float32).T)
    assert image.dtype.itemsize <= 4


def test_headers_that_differ_by_rounding_are_the_same_place(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    task, _ = load_task(folder)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = 3e-3
    write_nifti(folder / "labelsTr" / f"{CASES[0]}.nii.gz", scan(0, False)[1], affine)
    read_scan(pair_of(folder, CASES[0]), task)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"image": "../x.nii.gz", "label": "labelsTr/a.nii.gz"}, "leaves the task's folder"),
        ({"image": "/etc/x.nii.gz", "label": "labelsTr/a.nii.gz"}, "leaves the task's folder"),
        ({"image": "out/x.nii.gz", "label": "labelsTr/a.nii.gz"}, "leaves the task's folder"),
        ({"image": "imagesTr/a.nii.gz", "label": "../a.nii.gz"}, "leaves the task's folder"),
        ({"image": "imagesTr/a.png", "label": "labelsTr/a.nii.gz"}, "not the path of a .nii.gz"),
        ({"image": "imagesTr/a.nii.gz"}, "not the path of a .nii.gz"),
        ({"image": 3, "label": 4}, "not the path of a .nii.gz"),
        ("imagesTr/a.nii.gz", "'training' must be a list of"),
    ],
)
def test_a_list_that_leaves_the_folder_or_is_malformed_is_refused(
    tmp_path: Path, entry: object, reason: str
) -> None:
    folder = tmp_path / NAME
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        list_pairs(folder, {"training": [entry]})
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (["a", "a"], "case a is listed twice"),
        ([], "lists no case"),
        (None, "'training' must be a list"),
    ],
)
def test_doubled_and_empty_lists_are_refused(
    tmp_path: Path, training: list[str] | None, reason: str
) -> None:
    entries = training and [{"image": f"{c}.nii.gz", "label": f"l/{c}.nii.gz"} for c in training]
    with pytest.raises(UserError, match=reason):
        list_pairs(tmp_path, {"training": entries})


def test_two_cases_cannot_share_a_label(tmp_path: Path) -> None:
    entries = [{"image": f"{c}.nii.gz", "label": "l/x.nii.gz"} for c in "ab"]
    with pytest.raises(UserError, match=r"x\.nii\.gz is listed for two cases"):
        list_pairs(tmp_path, {"training": entries})


def test_tasks_are_found_below_the_root_or_as_the_root(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    (tmp_path / "._Task50_Tiny").mkdir()
    (tmp_path / "notes").mkdir()
    assert task_folders(tmp_path) == task_folders(folder) == task_folders(tmp_path, ["50"])
    with pytest.raises(UserError, match="unknown task 'Task77'"):
        task_folders(tmp_path, ["Task77"])
    with pytest.raises(UserError, match="holds no MSD task"):
        task_folders(tmp_path / "notes")
    with pytest.raises(UserError, match="no such folder"):
        task_folders(tmp_path / "absent")
