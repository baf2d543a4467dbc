"""Arrays at the task's spacing: which spacing, what shape, what is in them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import convert
from data_prep.foreground import sample_foreground
from data_prep.source import list_pairs
from data_prep.spacing import geometry_of, task_spacing
from mvl_dist.errors import UserError
from mvl_dist.resample import shape_at
from mvl_dist.splits import held_out_cases
from mvl_dist.store import read_array, read_manifest
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny, scan, write_nifti


def with_spacing(folder: Path, case: str, spacing: tuple[float, float, float]) -> None:
    """Give a case's two files another voxel size along x, y, z."""
    for part in ("imagesTr", "labelsTr"):
        path = folder / part / f"{case}.nii.gz"
        write_nifti(path, np.asarray(nib.load(path).dataobj), np.diag([*spacing, 1.0]))


def test_the_spacing_of_a_task_is_the_median_of_each_axis() -> None:
    spacings = [(1.0, 0.5, 0.7), (2.0, 0.6, 0.7), (1.5, 0.9, 0.8)]
    assert task_spacing([(spacing, (90, 200, 200)) for spacing in spacings]) == (1.5, 0.6, 0.7)


def test_the_coarse_axis_of_an_anisotropic_task_gets_its_10th_percentile() -> None:
    # ACDC's case in nnU-Net's own comment: 10 mm between most slices, 5 or 6 in some.
    coarse = [10.0, 10.0, 10.0, 5.0, 6.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    thin = [((z, 1.5, 1.5), (10, 200, 200)) for z in coarse]
    assert task_spacing(thin) == (6.0, 1.5, 1.5)
    # As many voxels along it as in the plane: no few slices, the median stays.
    assert task_spacing([(spacing, (150, 200, 200)) for spacing, _ in thin])[0] == 10.0
    # Never finer than the plane.
    mixed = [((z, 1.5, 1.5), (10, 200, 200)) for z in (10.0, 1.0, 10.0, 1.0, 10.0)]
    assert task_spacing(mixed)[0] == pytest.approx(1.50001)


def test_the_shape_keeps_the_extent() -> None:
    assert shape_at((100, 512, 512), (5.0, 0.9, 0.9), (2.5, 0.8, 0.8)) == (200, 576, 576)
    assert shape_at((1, 8, 8), (1.0, 1.0, 1.0), (4.0, 4.0, 4.0)) == (1, 2, 2)


def test_a_turned_scan_is_measured_along_d_h_w(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    image, _ = scan(0, ct=False)
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 0], affine[2, 1], affine[3, 3] = -3.0, 0.5, 2.0, 1.0  # z is left-right
    write_nifti(folder / "imagesTr" / f"{CASES[0]}.nii.gz", image, affine)
    pair = list_pairs(folder, json.loads((folder / "dataset.json").read_text()))[0]
    assert image.shape == (8, 10, 6)
    assert geometry_of(pair) == ((2.0, 0.5, 3.0), (10, 8, 6))
    pair.image.write_bytes(b"no")
    assert geometry_of(pair) is None


def test_the_spacing_is_that_of_the_cases_not_held_out(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    (held_out,) = held_out_cases(CASES, NAME, 0)
    others = [case for case in CASES if case != held_out]
    for case, size in zip(others, (1, 2, 3, 4, 5, 6, 7), strict=True):
        with_spacing(folder, case, (1.0, 1.0, size / 2))
    with_spacing(folder, held_out, (9.0, 9.0, 9.0))
    _, manifest = convert_tiny(folder, tmp_path / "s")
    assert manifest.spacing_mm == (2.0, 1.0, 1.0)
    for case in CASES:
        info = manifest.cases[case]
        assert info.spaced_shape == shape_at(info.native_shape, info.spacing_mm, (2.0, 1.0, 1.0))
        assert read_array(tmp_path / "s", NAME, case, "label_spaced").shape == info.spaced_shape
    assert manifest.cases[held_out].spaced_shape == (27, 90, 72)


def test_a_bad_case_does_not_count_in_the_spacing(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "msd")
    good = [case for case in CASES if case != CASES[5]]
    for number, case in enumerate(CASES):
        with_spacing(folder, case, (1.0, 1.0, 1.0 + number))
    # Its header is right, its voxels are not: only the conversion finds that.
    path = folder / "imagesTr" / f"{CASES[5]}.nii.gz"
    values = np.full((8, 10, 6), np.nan, np.float32)
    write_nifti(path, values, np.diag([1.0, 1.0, 40.0, 1.0]))
    report, manifest = convert_tiny(folder, tmp_path / "s", skip_bad=True)
    assert set(report.skipped) == {CASES[5]}
    assert (report.written, report.kept) == (7, 0)
    test = held_out_cases(good, NAME, 0)
    sizes = [1.0 + number for number, case in enumerate(CASES) if case in good and case not in test]
    assert manifest.spacing_mm == (np.median(sizes), 1.0, 1.0)


def test_at_the_scans_own_spacing_nothing_is_resampled(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    _, manifest = convert_tiny(folder, tmp_path / "s")
    image, label = scan(3, ct=False)
    arrays = {
        name: read_array(tmp_path / "s", NAME, CASES[3], name)
        for name in ("image_spaced", "label_spaced", "foreground_spaced")
    }
    np.testing.assert_array_equal(arrays["label_spaced"], label.T)
    normalised = (image - image.mean()) / image.std()
    np.testing.assert_allclose(arrays["image_spaced"][0], normalised.T, atol=2e-3)
    places = arrays["foreground_spaced"]
    expected = [(*voxel, value) for value in (1, 2) for voxel in np.argwhere(value == label.T)]
    assert [tuple(row) for row in places.tolist()] == [tuple(map(int, row)) for row in expected]
    assert manifest.spaced_checksum != manifest.checksum


def test_a_spacing_asked_for_is_taken_and_labels_keep_their_volume(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    _, manifest = convert_tiny(folder, tmp_path / "s", spacing=(1.0, 0.5, 0.8))
    assert manifest.spacing_mm == (1.0, 0.5, 0.8)
    label = read_array(tmp_path / "s", NAME, CASES[0], "label_spaced")
    assert label.shape == (12, 20, 10)
    for value, voxels in ((1, 58), (2, 2)):
        native_mm3, voxel_mm3 = voxels * 2.0, (12.0 * 10 * 8) / label.size
        assert abs((label == value).sum() * voxel_mm3 - native_mm3) <= voxel_mm3


@pytest.mark.parametrize("words", ["0 1 1", "-1 1 1", "inf 1 1", "nan 1 1"])
def test_a_spacing_that_is_none_is_refused_before_anything_is_written(
    words: str, tmp_path: Path
) -> None:
    make_tiny(tmp_path)
    argv = ["--msd-root", str(tmp_path), "--store", str(tmp_path / "s")]
    with pytest.raises(UserError, match="three positive millimetres"):
        convert.main([*argv, "--spacing", *words.split()])
    assert not (tmp_path / "s").exists()


def test_a_spacing_too_fine_to_be_stored_is_one_line_with_the_size(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    with pytest.raises(UserError, match=r"would have 120000x10x8 voxels .* at most 65535 an axis"):
        convert_tiny(folder, tmp_path / "s", spacing=(0.0001, 1.0, 1.0))


def test_without_a_spacing_the_store_is_that_of_the_grid_alone(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    _, none = convert_tiny(folder, tmp_path / "none", spacing="none")
    _, auto = convert_tiny(folder, tmp_path / "auto")
    assert none.spacing_mm is None
    assert {case.spaced_shape for case in none.cases.values()} == {None}
    assert none.checksum == auto.checksum
    arrays = {path.name for path in (tmp_path / "none" / NAME / "cases" / CASES[0]).iterdir()}
    assert arrays == {"image", "label", "label_native", "zarr.json"}
    with pytest.raises(UserError, match=r"other settings \(spacing auto there, none asked for"):
        convert_tiny(folder, tmp_path / "auto", spacing="none")
    # They may be added.
    report, added = convert_tiny(folder, tmp_path / "none")
    assert report.written == 8
    assert added.spaced_checksum == auto.spaced_checksum
    assert read_manifest(tmp_path / "none", NAME) == added


def test_the_foreground_is_drawn_evenly_and_the_same_each_time() -> None:
    label = np.zeros((40, 50, 60), np.uint8)
    label[5:35, 10:40, 10:50] = 7
    label[0, 0, :3] = 2
    rows = sample_foreground(label, "case", limit=3000)
    np.testing.assert_array_equal(rows, sample_foreground(label, "case", limit=3000))
    assert not np.array_equal(rows, sample_foreground(label, "other", limit=3000))
    assert rows.dtype == np.uint16
    np.testing.assert_array_equal(rows[:3], [(0, 0, 0, 2), (0, 0, 1, 2), (0, 0, 2, 2)])
    assert len(rows) == 3003
    assert len(np.unique(rows, axis=0)) == 3003
    d, h, w, value = rows[3:].T.astype(int)
    assert (label[d, h, w] == 7).all()
    assert (value == 7).all()
    for axis, low, high in ((d, 5, 35), (h, 10, 40), (w, 10, 50)):
        # The mean of n draws from a uniform distribution, to five standard errors.
        middle, error = (low + high - 1) / 2, (high - low) / np.sqrt(12 * 3000)
        assert abs(axis.mean() - middle) < 5 * error
    assert sample_foreground(np.zeros((3, 3, 3), np.uint8), "case").shape == (0, 4)
