"""Fields that are known in millimetres go through the converter and come back to the scan."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep.convert import ConvertOptions, convert_task
from mvl_dist.native_grid import to_native
from mvl_dist.resample import resample_image
from mvl_dist.store import Manifest, read_array, read_manifest
from tests.data_prep.tiny import NAME, write_nifti

# A scan stored posterior, inferior, right: three axes turned, two of them mirrored, with odd sizes,
# three spacings, an oblique angle and an origin far from zero.
SHAPE = (21, 17, 13)
SPACING = (0.8, 2.5, 1.3)
CENTRE = np.array([11.0, -7.0, 4.0])
CASES = tuple(f"blob_{number}" for number in range(6))


def affine() -> np.ndarray:
    axes = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
    turn = np.deg2rad(12)
    oblique = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = oblique @ axes @ np.diag(SPACING)
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return matrix


def positions_mm(shape: tuple[int, ...], to_mm: np.ndarray) -> np.ndarray:
    """RAS+ millimetres of every voxel: (*shape, 3)."""
    index = np.stack(np.indices(shape), -1)
    return index @ to_mm[:3, :3].T + to_mm[:3, 3]


def turned(values: np.ndarray) -> np.ndarray:
    """Voxels (x, y, z) of the file as (D, H, W) of the store's axes, by nibabel."""
    orientation = nib.orientations.io_orientation(affine())
    return nib.orientations.apply_orientation(values, orientation).T


def ramp(mm: np.ndarray) -> np.ndarray:
    return 500 + mm @ np.array([3.0, -5.0, 2.0])


def blob(mm: np.ndarray) -> np.ndarray:
    return 9 - np.linalg.norm((mm - CENTRE) / np.array([1.0, 1.6, 0.8]), axis=-1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A converted task: each image is the ramp, each label where the blob is positive."""
    root = tmp_path_factory.mktemp("native")
    folder = root / NAME
    mm = positions_mm(SHAPE, affine())
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in CASES:
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", ramp(mm).astype(np.float32), affine())
        write_nifti(
            folder / "labelsTr" / f"{case}.nii.gz", (blob(mm) > 0).astype(np.uint8), affine()
        )
    files = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for case in CASES
    ]
    about = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "blob"}}
    (folder / "dataset.json").write_text(json.dumps({**about, "training": files}))
    convert_task(folder, ConvertOptions(root, root / "store", grid=(32, 24, 40), workers=1))
    return root / "store", read_manifest(root / "store", NAME)


def test_a_field_linear_in_millimetres_comes_back_to_the_files_own_voxels(
    manifest: tuple[Path, Manifest],
) -> None:
    store, about = manifest
    info = about.cases[CASES[0]]
    assert info.source_orientation == "PIR"
    there = torch.from_numpy(read_array(store, NAME, CASES[0], "image")).double()
    back = to_native(there, info.native_shape)[0].numpy()
    back = back * info.intensity["std"][0] + info.intensity["mean"][0]
    # Once by the manifest's affine, from voxel (w, h, d); once by turning the file's own voxels.
    w_h_d = info.native_shape[::-1]
    by_manifest = ramp(positions_mm(w_h_d, np.array(info.affine))).T
    by_file = turned(ramp(positions_mm(SHAPE, affine())))
    inside = (slice(1, -1),) * 3  # the outermost value is repeated beyond its centre
    for expected in (by_manifest, by_file):  # neighbours differ by 3 to 6; float16 is to 0.1
        np.testing.assert_allclose(back[inside], expected[inside], atol=0.15)


def test_a_blob_at_the_grid_lies_over_the_untouched_label(manifest: tuple[Path, Manifest]) -> None:
    store, about = manifest
    info = about.cases[CASES[0]]
    native = read_array(store, NAME, CASES[0], "label_native")
    np.testing.assert_array_equal(native, turned(blob(positions_mm(SHAPE, affine())) > 0))

    # What a perfect model would answer: the blob's own values at the grid's voxel centres.
    grid, size = about.grid, np.array(info.native_shape)
    voxel = (np.stack(np.indices(grid), -1) + 0.5) * (size / grid) - 0.5
    to_mm = np.array(info.affine)
    logits = blob(voxel[..., ::-1] @ to_mm[:3, :3].T + to_mm[:3, 3])
    predicted = to_native(torch.from_numpy(logits)[None], info.native_shape)[0].numpy() > 0
    wrong = predicted != native.astype(bool)
    # Linear interpolation errs only where the blob's value is next to nothing.
    value = blob(positions_mm(tuple(size[::-1]), to_mm)).T
    assert wrong.mean() < 0.01
    assert np.abs(value[wrong]).max(initial=0) < 0.1


@pytest.mark.parametrize(
    ("grid", "within"),
    [
        ((32, 24, 40), 1e-4),
        ((13, 17, 21), 0),
        ((13, 128, 21), 1e-4),
        # The widened kernel of a shrinking axis is centred to a fifteenth of a voxel.
        ((8, 8, 8), 0.25),
        ((64, 9, 30), 0.07),
    ],
)
def test_what_is_linear_survives_the_way_there_and_back_at_any_size(
    grid: tuple[int, int, int], within: float
) -> None:
    shape = (13, 17, 21)
    index = np.stack(np.indices(shape), -1)
    field = (index @ np.array([2.0, -1.0, 0.5]) + 3).astype(np.float32)
    back = to_native(torch.from_numpy(resample_image(field[None], grid)), shape)[0].numpy()
    # At the border values are repeated: half a voxel of the coarser grid.
    rim = [int(np.ceil(max(n / m, 1) * 1.5)) for n, m in zip(shape, grid, strict=True)]
    inside = tuple(slice(r, n - r) for r, n in zip(rim, shape, strict=True))
    np.testing.assert_allclose(back[inside], field[inside], atol=within)
    assert (back - field)[inside].mean() == pytest.approx(0, abs=0.01)  # nothing moves


def test_the_same_shape_comes_back_bit_for_bit() -> None:
    logits = torch.randn(2, 5, 6, 7)
    assert torch.equal(to_native(logits, (5, 6, 7)), logits)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="R, D, H, W"):
        to_native(torch.zeros(1, 2, 5, 6, 7), (5, 6, 7))


@pytest.mark.msd
def test_a_perfect_answer_at_128_cubed_is_the_real_label(msd_root: Path) -> None:
    from mvl_dist.label_resampling import resample_label

    for path in sorted((msd_root / "Task04_Hippocampus" / "labelsTr").glob("[!.]*.nii.gz"))[:4]:
        label = np.ascontiguousarray(np.asarray(nib.load(path).dataobj).astype(np.uint8).T)
        there = resample_label(label, (128, 128, 128))
        logits = torch.from_numpy(np.stack([there == value for value in (1, 2)]) * 20.0 - 10)
        back = to_native(logits, label.shape).numpy() > 0
        for value in (1, 2):
            mask = label == value
            assert 2 * (back[value - 1] & mask).sum() / (back[value - 1].sum() + mask.sum()) > 0.999
