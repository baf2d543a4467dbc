"""A tiny task in MSD's format that tests may damage: 8 cases of 8 x 10 x 6 voxels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.convert import ConvertOptions, convert_task
from data_prep.report import Report
from mvl_dist.store import Manifest, read_manifest

NAME = "Task50_Tiny"
CASES = tuple(f"tiny_{number}" for number in range(8))
SHAPE = (8, 10, 6)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    image = nib.Nifti1Image(values, affine)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def scan(number: int, ct: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image and label (x, y, z) of a case."""
    rng = np.random.default_rng(number)
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 3:8, 1:4] = 1
    label[3, 4:6, 2] = 2
    image = rng.normal(300, 30, SHAPE) + 100 * label - (200 if ct else 0)
    return image.astype(np.int16), label


def make_tiny(root: Path, modality: str = "MRI") -> Path:
    """Write the task below `root`; returns its folder."""
    folder = root / NAME
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, case in enumerate(CASES):
        image, label = scan(number, modality == "CT")
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", image)
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", label)
    dataset = {
        "modality": {"0": modality},
        "labels": {"0": "background", "1": "organ", "2": "lesion"},
        "numTraining": len(CASES),
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in CASES
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def convert_tiny(folder: Path, store: Path, **options: object) -> tuple[Report, Manifest]:
    """Convert at 8^3 in this process unless told otherwise."""
    arguments = {"grid": (8, 8, 8), "workers": 1, **options}
    report = convert_task(folder, ConvertOptions(folder.parent, store, **arguments))  # type: ignore[arg-type]
    return report, read_manifest(store, folder.name)


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder and its time of change."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def nothing_half_written(store: Path) -> bool:
    """No left-over, and no manifest that would publish an incomplete task."""
    names = [path.name for path in store.rglob("*")]
    return not any(name.startswith(".partial-") or name == "manifest.json" for name in names)
