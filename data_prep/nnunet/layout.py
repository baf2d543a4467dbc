"""Where nnU-Net keeps its files below --output, and the notes that the bridge lays beside them.

OUTPUT/
  nnUNet_raw/Dataset004_Hippocampus/
    imagesTr labelsTr              our cases of the five folds, labels for training
    imagesTs labelsTs              our held-out test cases; nnU-Net never reads these labels
    dataset.json
    mvl_export.json                what was exported; the folder is renamed into place whole
  nnUNet_preprocessed/Dataset004_Hippocampus/
    splits_final.json              our five folds
    mvl_planned_3d_fullres.json    planning and preprocessing ended well
  nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/
  predictions/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/
    hippocampus_001.nii.gz         a label map a held-out case
    mvl_predictions.json           what predicted them; the folder is renamed into place whole
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mvl_dist.errors import UserError
from mvl_dist.files import full_disk_is_a_user_error, write_text_atomically
from mvl_dist.store import Manifest
from mvl_dist.tasks import TASKS, resolve_task_name

EXPORTED = "mvl_export.json"
PREDICTED = "mvl_predictions.json"
SPLITS = "splits_final.json"
PLANS = "nnUNetPlans"
ENDING = ".nii.gz"
# nnU-Net's names for its three folders, which are also the environment variables it reads.
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"

Fold = dict[str, list[str]]


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        dataset: nnU-Net's name of the task.
        target: `binary`, `labels` or `regions`.
        sources: checksum of what was exported, see `sources_checksum`.
        values: (label value of the task, label value in nnU-Net's files).
        test: the held-out cases, which lie in imagesTs.
        folds: what splits_final.json holds.
        files: path below the dataset's folder -> bytes.
    """

    task: str
    dataset: str
    target: str
    sources: str
    values: tuple[tuple[int, int], ...]
    test: tuple[str, ...]
    folds: tuple[Fold, ...]
    files: dict[str, int]

    def write(self, folder: Path) -> None:
        """Write the note into a dataset's folder."""
        write_text_atomically(folder / EXPORTED, json.dumps(asdict(self), indent=1))


@dataclass(frozen=True)
class Layout:
    """The folders of one dataset below --output."""

    output: Path
    dataset: str

    @property
    def raw(self) -> Path:
        """Images, labels, dataset.json."""
        return self.output / RAW / self.dataset

    @property
    def preprocessed(self) -> Path:
        """Plans, splits and the training's own copy of the cases."""
        return self.output / PREPROCESSED / self.dataset

    def results(self, model: str, fold: int) -> Path:
        """What a training leaves; `model` as `model_name` gives it."""
        return self.output / RESULTS / self.dataset / model / f"fold_{fold}"

    def predictions(self, model: str, fold: int) -> Path:
        """Label maps of the held-out cases."""
        return self.output / "predictions" / self.dataset / model / f"fold_{fold}"


def model_name(trainer: str, configuration: str) -> str:
    """nnU-Net's name of a trained model's folder."""
    return f"{trainer}__{PLANS}__{configuration}"


def dataset_name(task: str) -> str:
    """nnU-Net's name of a task: `Task04_Hippocampus` -> `Dataset004_Hippocampus`.

    nnU-Net wants three digits. A task whose name gives none draws one from 500 to 999 by its name.
    """
    match = re.fullmatch(r"Task(\d{2,3})_(.+)", task)
    number, name = (int(match[1]), match[2]) if match else (0, task)
    if number == 0:
        number = 500 + int(hashlib.sha256(task.encode()).hexdigest(), 16) % 500
    return f"Dataset{number:03d}_{re.sub('[^A-Za-z0-9_-]', '_', name)}"


def sources_checksum(manifest: Manifest) -> str:
    """Identity of a task's files, labels and test cases; the store's grid does not count."""
    content = {
        "labels": manifest.task.labels,
        "modalities": manifest.task.modalities,
        "split_seed": manifest.split_seed,
        "test": sorted(manifest.test_cases),
        "cases": {
            name: {role: source["sha256"] for role, source in sorted(case.sources.items())}
            for name, case in sorted(manifest.cases.items())
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_export(path: Path) -> Export:
    """Read the note of an export.

    Raises:
        UserError: damaged.
    """
    try:
        raw = json.loads(path.read_text())
        raw["values"] = tuple((task, theirs) for task, theirs in raw["values"])
        raw["test"], raw["folds"] = tuple(raw["test"]), tuple(raw["folds"])
        return Export(**raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a note of 'mvl nnunet export' ({type(error).__name__}: {error}): delete "
            f"{path.parent} and export again"
        ) from error


def find_export(output: Path, task: str) -> tuple[Layout, Export]:
    """The export of a task below --output, by any of the task's names.

    Raises:
        UserError: there is none.
    """
    exports = [read_export(path) for path in sorted((output / RAW).glob(f"Dataset*/{EXPORTED}"))]
    present = {export.task: export for export in exports}
    name = resolve_task_name(task, tuple(dict.fromkeys((*present, *TASKS))))
    if name not in present:
        raise UserError(
            f"{output} holds no export of {name} (it holds {', '.join(present) or 'none'}): run "
            f"'mvl nnunet export --output {output} --task {name} --store DIR --msd-root DIR'"
        )
    return Layout(output, present[name].dataset), present[name]


def ensure_folds(layout: Layout, folds: Sequence[Fold]) -> None:
    """Write our folds where nnU-Net looks for them; it keeps a file that is there.

    Raises:
        UserError: a file with other folds is there, or the folder cannot be written to.
    """
    path = layout.preprocessed / SPLITS
    if not path.exists():
        with full_disk_is_a_user_error(layout.output):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(list(folds), indent=1))
        return
    try:
        same = json.loads(path.read_text()) == list(folds)
    except ValueError:
        same = False
    if not same:
        raise UserError(
            f"{path}: holds other folds than the store's split, so its results would not stand "
            f"beside ours: delete {layout.preprocessed} and run the same command again"
        )
