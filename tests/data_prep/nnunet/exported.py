"""A task with its store and its export to nnunetv2, and a scan that no luck gets right."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.nnunet.export import export
from data_prep.nnunet.layout import Export, Layout
from mvl_dist.store import Manifest, read_manifest
from tests.data_prep.tiny import CASES, scan, write_nifti

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


def save_lps(folder: Path) -> None:
    """Turn every scan to LPS and move it, so that no axis can be right by luck."""
    affine = nib.affines.from_matvec(np.diag([-1, -1, 2]), [40, 50, -30])
    for number, case in enumerate(CASES):
        for part, values in zip(("imagesTr", "labelsTr"), scan(number, False), strict=True):
            write_nifti(folder / part / f"{case}.nii.gz", values, affine)


def predict(given: Exported, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write a prediction of every held-out case, in the scan's own geometry."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in given.export.test:
        label = given.written("labelsTs", case)
        write_nifti(folder / f"{case}.nii.gz", change(np.asanyarray(label.dataobj)), label.affine)
