"""Every way in which a case can be bad: one line that names it, and nothing half-written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mvl_dist.errors import UserError
from tests.data_prep.tiny import (
    AFFINE,
    CASES,
    NAME,
    convert_tiny,
    make_tiny,
    nothing_half_written,
    scan,
    write_nifti,
)

BAD = CASES[3]
IMAGE, LABEL = f"imagesTr/{BAD}.nii.gz", f"labelsTr/{BAD}.nii.gz"


def voxels(path: str, values: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda folder: write_nifti(folder / path, values, affine)


def raw_bytes(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / path).write_bytes(change((folder / path).read_bytes()))

    return apply


def unzipped(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return raw_bytes(path, lambda data: gzip.compress(change(gzip.decompress(data)), 1))


def header(path: str, **fields: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        image = nib.Nifti1Image.from_bytes(gzip.decompress((folder / path).read_bytes()))
        raw = bytearray(gzip.decompress((folder / path).read_bytes()))
        for name, value in fields.items():
            image.header[name] = value
        raw[:348] = image.header.binaryblock
        raw[108:112] = np.float32(352).tobytes()  # nibabel forgets vox_offset on reading
        (folder / path).write_bytes(gzip.compress(bytes(raw), 1))

    return apply


IMAGE_VALUES, LABEL_VALUES = scan(3, ct=False)
WITH_NAN = IMAGE_VALUES.astype(np.float32)
WITH_NAN[1, 2, 3] = np.nan
WITH_INFINITY = np.where(np.isnan(WITH_NAN), np.inf, WITH_NAN)
SHIFTED = AFFINE + np.array([[0, 0, 0, 0.5], *[[0] * 4] * 3])
NINE = np.where(LABEL_VALUES == 2, 9, LABEL_VALUES).astype(np.uint8)

DEFECTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (raw_bytes(IMAGE, lambda data: data[:-40]), IMAGE, "truncated gzip file"),
    "empty": (raw_bytes(IMAGE, lambda data: b""), IMAGE, "not a gzip file"),
    "bad crc": (
        raw_bytes(LABEL, lambda d: d[:-8] + bytes([d[-8] ^ 1]) + d[-7:]),
        LABEL,
        "damaged gzip file",
    ),
    "garbage behind": (raw_bytes(IMAGE, lambda data: data + b"xyz"), IMAGE, "damaged gzip file"),
    "not gzip": (raw_bytes(IMAGE, lambda data: b"<html>"), IMAGE, "not a gzip file"),
    "not NIfTI": (unzipped(IMAGE, lambda data: b"hello" * 100), IMAGE, "not a NIfTI file"),
    "short header": (unzipped(IMAGE, lambda data: data[:100]), IMAGE, "not a NIfTI file"),
    "voxels missing": (unzipped(IMAGE, lambda data: data[:-10]), IMAGE, "ends early"),
    "voxels too many": (unzipped(LABEL, lambda data: data + b"\0"), LABEL, "longer than announced"),
    "no voxels": (header(IMAGE, dim=[3, 8, 0, 6, 1, 1, 1, 1]), IMAGE, "holds no volume"),
    "image missing": (lambda folder: (folder / IMAGE).unlink(), IMAGE, "missing, though"),
    "label missing": (lambda folder: (folder / LABEL).unlink(), LABEL, "missing, though"),
    "other shape": (voxels(LABEL, LABEL_VALUES[:-1]), LABEL, "differs from its image's"),
    "other place": (voxels(LABEL, LABEL_VALUES, SHIFTED), LABEL, "lies up to 0.5 mm"),
    "channels": (voxels(IMAGE, np.stack([IMAGE_VALUES] * 2, -1)), IMAGE, "does not hold the 1 "),
    "unlisted label": (voxels(LABEL, NINE), LABEL, "label values 9 are not among"),
    "broken label": (
        voxels(LABEL, LABEL_VALUES * np.float32(0.5)),
        LABEL,
        r"label values 0\.5 are not among",
    ),
    "NaN label": (voxels(LABEL, LABEL_VALUES * np.float32("nan")), LABEL, "label values nan"),
    "NaN": (voxels(IMAGE, WITH_NAN), IMAGE, "1 voxels are NaN or infinite"),
    "infinity": (voxels(IMAGE, WITH_INFINITY), IMAGE, "1 voxels are NaN or infinite"),
    "flat affine": (header(IMAGE, srow_z=[0, 0, 0, 0]), IMAGE, "affine is degenerate"),
    "NaN affine": (header(IMAGE, srow_x=[np.nan, 0, 0, 0]), IMAGE, "affine is degenerate"),
    "micron": (header(IMAGE, xyzt_units=3), IMAGE, "unit of length is not the millimetre"),
    "complex": (voxels(IMAGE, IMAGE_VALUES.astype(np.complex64)), IMAGE, "are not intensities"),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
# A CT task meets the same reader in its first pass: three defects show that it is the same.
@pytest.mark.parametrize(
    ("defect", "modality"),
    [
        *((defect, "MRI") for defect in DEFECTS),
        ("truncated", "CT"),
        ("NaN", "CT"),
        ("micron", "CT"),
    ],
)
def test_a_bad_case_stops_with_one_line_and_can_be_left_out(
    tmp_path: Path, defect: str, modality: str
) -> None:
    damage, file, reason = DEFECTS[defect]
    folder = make_tiny(tmp_path, modality)
    damage(folder)
    store = tmp_path / "s"
    with pytest.raises(UserError, match=reason) as caught:
        convert_tiny(folder, store)
    message = str(caught.value)
    assert f"case {BAD}: " in message
    assert str(folder / file) in message
    assert "--skip-bad" in message
    assert "\n" not in message
    assert nothing_half_written(store)

    report, manifest = convert_tiny(folder, store, skip_bad=True)
    assert set(report.skipped) == set(manifest.skipped) == {BAD}
    assert set(manifest.cases) == set(CASES) - {BAD}
    assert any(BAD in line for line in report.lines())

    image, label = scan(3, modality == "CT")
    write_nifti(folder / IMAGE, image)
    write_nifti(folder / LABEL, label)
    repaired = convert_tiny(folder, store)[1]
    assert repaired.checksum == convert_tiny(folder, tmp_path / "fresh")[1].checksum


@pytest.mark.parametrize("modality", ["MRI", "CT"])
def test_all_bad_is_an_error_even_when_bad_cases_may_be_left_out(
    tmp_path: Path, modality: str
) -> None:
    folder = make_tiny(tmp_path, modality)
    for path in folder.glob("imagesTr/*"):
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="all 8 cases are bad, the first tiny_"):
        convert_tiny(folder, tmp_path / "s", skip_bad=True)
    assert nothing_half_written(tmp_path / "s")


def test_mac_doubles_are_passed_over_in_the_list_and_on_disk(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["training"].append(
        {"image": "./imagesTr/._tiny_0.nii.gz", "label": "./labelsTr/._tiny_0.nii.gz"}
    )
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "imagesTr" / "._tiny_0.nii.gz").write_bytes(b"\0\5\x16\7Mac OS X")
    report, manifest = convert_tiny(folder, tmp_path / "s")
    assert set(manifest.cases) == set(CASES)
    assert report.notes == []


@pytest.mark.parametrize(("text", "reason"), [(None, "missing"), ("{", "not JSON")])
def test_a_bad_dataset_json_stops_before_a_store_is_made(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    folder = make_tiny(tmp_path)
    (folder / "dataset.json").unlink()
    if text is not None:
        (folder / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        convert_tiny(folder, tmp_path / "s")
    assert f"{NAME}/dataset.json" in str(caught.value)
    assert not (tmp_path / "s").exists()
