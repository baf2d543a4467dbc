"""Reading a scan of any kind, and writing over it exactly; every way in which one can be bad."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mvl_dist.errors import UserError
from mvl_dist.inputs import Case
from mvl_dist.scans import check_orientation, read_case, write_over

rng = np.random.default_rng(0)
VOXELS = rng.normal(300, 30, (5, 6, 7)).astype(np.float32)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-0.7, 1.1, 2.5]), [-20, 30, 5]
)


def write(path: Path, values: np.ndarray = VOXELS, affine: np.ndarray = OBLIQUE) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def read(*files: Path, modalities: tuple[str, ...] = ("MRI",), orientation: str = "") -> object:
    return read_case(Case("x", files), modalities, len(modalities), orientation)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 3)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_result_lies_over_its_scan_to_the_last_bit(
    tmp_path: Path, sform: int, qform: int, kind: type
) -> None:
    image = kind(VOXELS, OBLIQUE)
    image.set_sform(OBLIQUE, sform)
    image.set_qform(OBLIQUE, qform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"Jane Doe"
    nib.save(image, tmp_path / "in.nii")
    scan = read(tmp_path / "in.nii")
    given = rng.integers(0, 3, scan.image.shape[1:]).astype(np.uint8)
    write_over(tmp_path / "out.nii.gz", given, scan)
    before, after = nib.load(tmp_path / "in.nii"), nib.load(tmp_path / "out.nii.gz")
    assert type(after) is kind
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    for read_form in ("get_sform", "get_qform"):
        first, second = (getattr(i.header, read_form)(coded=True) for i in (before, after))
        assert first[1] == second[1]
        if first[0] is not None:
            np.testing.assert_array_equal(first[0], second[0])
    assert after.header.get_zooms() == before.header.get_zooms()
    assert after.header["xyzt_units"] == before.header["xyzt_units"]
    assert b"Jane" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "out.nii.gz").image[0], given)


def test_several_channels_go_out_as_they_came_in(tmp_path: Path) -> None:
    values = rng.normal(size=(5, 6, 7, 3)).astype(np.float32)
    scan = read(write(tmp_path / "in.nii.gz", values), modalities=("a", "b", "c"))
    assert scan.image.shape == (3, 7, 6, 5)
    write_over(tmp_path / "out.nii.gz", scan.image, scan)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").get_fdata(), values)


def test_one_file_a_channel_reads_as_one_file_with_all(tmp_path: Path) -> None:
    values = rng.normal(size=(5, 6, 7, 2)).astype(np.float32)
    whole = read(write(tmp_path / "all.nii.gz", values), modalities=("T2", "ADC"))
    files = [write(tmp_path / f"{n}.nii.gz", values[..., n]) for n in range(2)]
    np.testing.assert_array_equal(whole.image, read(*files, modalities=("T2", "ADC")).image)


def test_a_model_of_the_first_channel_takes_a_file_with_all_or_with_that_one(
    tmp_path: Path,
) -> None:
    values = rng.normal(size=(5, 6, 7, 2)).astype(np.float32)
    files = [write(tmp_path / "all.nii.gz", values), write(tmp_path / "0.nii.gz", values[..., 0])]
    first, alone = (read_case(Case("x", (file,)), ("T2", "ADC"), 1) for file in files)
    np.testing.assert_array_equal(first.image, alone.image)


def test_a_scan_that_states_no_orientation_is_read_as_it_is_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_zooms((1.0, 1.5, 3.0))
    assert not image.header["sform_code"]
    assert not image.header["qform_code"]
    nib.save(image, tmp_path / "in.nii.gz")
    with pytest.raises(UserError, match="--assume-orientation") as caught:
        read(tmp_path / "in.nii.gz")
    assert str(tmp_path / "in.nii.gz") in str(caught.value)
    scan = read(tmp_path / "in.nii.gz", orientation=check_orientation("las"))
    assert scan.orientation.codes == "LAS"
    assert scan.orientation.spacing_mm == (3.0, 1.5, 1.0)
    np.testing.assert_array_equal(scan.image[0], VOXELS[::-1].T)
    write_over(tmp_path / "out.nii.gz", scan.image[0], scan)
    out = nib.load(tmp_path / "out.nii.gz")
    assert not out.header["sform_code"]
    assert not out.header["qform_code"]
    np.testing.assert_array_equal(out.get_fdata(), VOXELS)


@pytest.mark.parametrize("codes", ["", "RA", "RAX", "RLS", "XYZ", "RASS"])
def test_codes_that_are_no_orientation_are_refused(codes: str) -> None:
    with pytest.raises(UserError, match="--assume-orientation"):
        check_orientation(codes)


def with_nan(values: np.ndarray) -> np.ndarray:
    return np.where(values == values.max(), np.nan, values)


def flat_affine(path: Path) -> Path:
    raw = bytearray(gzip.decompress(write(path).read_bytes()))
    raw[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    raw[254:256] = np.int16(1).tobytes()  # sform_code
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def changed(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(write(path).read_bytes()))
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "2D": (lambda p: write(p, VOXELS[..., 0]), "holds no volume"),
    "channels": (lambda p: write(p, np.stack([VOXELS] * 3, -1)), "does not hold the 1 channel"),
    "NaN": (lambda p: write(p, with_nan(VOXELS)), "1 voxels are NaN"),
    "flat affine": (flat_affine, "affine is degenerate"),
    "cut short": (lambda p: changed(p, lambda data: data[:-50]), "truncated gzip"),
    "no gzip": (lambda p: changed(p, lambda data: b"<html>"), "not a gzip file"),
    "no NIfTI": (lambda p: changed(p, lambda data: gzip.compress(b"x" * 999)), "not a NIfTI file"),
    "colours": (
        lambda p: write(p, np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "are not intensities",
    ),
    "gone": (lambda p: p, "cannot be read"),
}


@pytest.mark.parametrize("defect", BAD)
def test_a_bad_scan_is_one_line_that_names_it(tmp_path: Path, defect: str) -> None:
    damage, reason = BAD[defect]
    path = damage(tmp_path / "in.nii.gz")
    with pytest.raises(UserError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--skip-bad" not in str(caught.value)  # the converter's


@pytest.mark.parametrize(
    ("values", "affine", "reason"),
    [
        (VOXELS[:-1], OBLIQUE, "shape .* differs from"),
        (VOXELS, OBLIQUE + np.diag([0.2, 0, 0, 0]), "lies up to"),
    ],
)
def test_channels_on_different_grids_are_refused(
    tmp_path: Path, values: np.ndarray, affine: np.ndarray, reason: str
) -> None:
    files = [write(tmp_path / "0.nii.gz"), write(tmp_path / "1.nii.gz", values, affine)]
    with pytest.raises(UserError, match=reason) as caught:
        read(*files, modalities=("T2", "ADC"))
    assert str(files[1]) in str(caught.value)
