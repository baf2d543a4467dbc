"""nnU-Net's predictions of our held-out cases through our metrics, beside our own runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.nifti import read_source
from data_prep.nnunet.layout import (
    ENDING,
    EXPORTED,
    PLANS,
    PREDICTED,
    Export,
    Layout,
    find_export,
    model_name,
    sources_checksum,
)
from mvl_dist import score_table
from mvl_dist.errors import UserError
from mvl_dist.files import full_disk_is_a_user_error, write_text_atomically
from mvl_dist.metrics import case_metrics
from mvl_dist.nifti import ALIGNED_MM, ALIGNED_VOXELS, orientation_of, parse_nifti
from mvl_dist.place import StorePlace
from mvl_dist.provenance import git_state, versions
from mvl_dist.regions import pairs_to_score, scored_regions
from mvl_dist.splits import make_split
from mvl_dist.store import CaseInfo, Manifest, array_sha256, read_array, read_manifest, regions_of
from mvl_dist.tracking import Tracker, default_uri

MODEL = "nnunetv2"
Row = dict[str, Any]
LabelMap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scores:
    """What predictions are worth, before anything is written.

    Attributes:
        about: what predicted them, with the nnunetv2 version where it is known.
        rows: as `mvl_dist.evaluation.evaluate_cases` gives them, without figures at the store's
            grid, which nnU-Net never sees.
        identity: changes with the data, the target, the model or any voxel predicted.
    """

    manifest: Manifest
    export: Export
    fold: int
    about: dict[str, Any]
    rows: list[Row]
    identity: str


def score(
    output: Path,
    store: StorePlace,
    task: str,
    fold: int,
    configuration: str,
    trainer: str,
    predictions: Path | None = None,
) -> Scores:
    """Compare the predictions of the held-out cases with the store's untouched labels.

    Args:
        predictions: folder of CASE.nii.gz; None takes where `mvl nnunet train` put them.

    Raises:
        UserError: no export, one of other data, or a prediction that is missing, damaged, of
            another geometry or with unknown label values; names the case.
    """
    manifest = read_manifest(store, task)
    layout, export = find_export(output, manifest.task.name)
    if export.sources != sources_checksum(manifest):
        raise UserError(
            f"{layout.raw / EXPORTED}: was exported from other data or another split than "
            f"{store}/{manifest.task.name} holds: pass the store of then, or export again into "
            "another --output"
        )
    split = make_split(tuple(manifest.cases), export.task, fold, seed=manifest.split_seed)
    model = model_name(trainer, configuration)
    folder = predictions or layout.predictions(model, fold)
    about = _about(folder, export, fold, configuration, trainer)
    found: dict[str, LabelMap] = {}
    for case in sorted(split.test):
        found[case] = read_prediction(folder, manifest.cases[case], export, layout)
    about_rows = {"task": export.task, "model": MODEL, "fold": fold, "seed": 0, "split": "test"}
    rows = [
        {**about_rows, **row}
        for case in found
        for row in _rows(store, manifest, export, case, found[case])
    ]
    decides = {
        "data": manifest.checksum,
        "target": export.target,
        "fold": fold,
        "about": {key: about[key] for key in ("nnunetv2", "trainer", "configuration", "plans")},
        "predictions": {case: array_sha256(label) for case, label in found.items()},
    }
    identity = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
    return Scores(manifest, export, fold, about, rows, identity)


def _about(
    folder: Path, export: Export, fold: int, configuration: str, trainer: str
) -> dict[str, Any]:
    """What is known of who predicted: the note of `mvl nnunet train`, or what the user says."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder of predictions: run 'mvl nnunet train --task {export.task} "
            f"--fold {fold}' with the same --output, --configuration and --trainer, or pass "
            "--predictions"
        )
    said = {
        "trainer": trainer,
        "configuration": configuration,
        "plans": PLANS,
        "fold": fold,
        "sources": export.sources,
    }
    if not (folder / PREDICTED).exists():
        return {**said, "nnunetv2": "unknown"}
    try:
        noted = dict(json.loads((folder / PREDICTED).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / PREDICTED}: damaged ({error}): predict again") from error
    for key, value in said.items():
        if noted.get(key) != value:
            raise UserError(
                f"{folder / PREDICTED}: these predictions are of {key} {noted.get(key)}, not "
                f"{value}: pass the --trainer, --configuration and --fold that they are of"
            )
    return noted


def read_prediction(folder: Path, info: CaseInfo, export: Export, layout: Layout) -> LabelMap:
    """Read a predicted label map, in any orientation of the scan's own grid.

    Returns:
        (D, H, W) label values of the task (for `binary`: 1), on the axes of `label_native`.

    Raises:
        UserError: missing, damaged, another geometry than the scan's, or unknown label values.
    """
    path = folder / f"{info.name}{ENDING}"
    again = f"predict it again with 'mvl nnunet train --output {layout.output}'"
    if not path.is_file():
        raise UserError(f"{path}: case {info.name} has no prediction: {again}")
    try:
        image = parse_nifti(path, read_source(path, folder)[1])
    except UserError as error:
        reason = str(error).partition("; ")[0]
        raise UserError(f"case {info.name}: {reason}: {again}") from error
    orientation = orientation_of(image.affine, image.shape[:3])
    label = orientation.canonical(np.asanyarray(image.dataobj))
    if label.shape != info.native_shape:
        raise UserError(
            f"{path}: case {info.name}: {_by(label.shape)} voxels (D, H, W) where the scan has "
            f"{_by(info.native_shape)}: {again}"
        )
    apart = _distance(orientation.affine, np.array(info.affine), info)
    if apart > ALIGNED_MM + ALIGNED_VOXELS * min(info.spacing_mm):
        raise UserError(
            f"{path}: case {info.name}: its affine lies up to {apart:.3g} mm from the scan's: "
            f"{again}"
        )
    # Binary merges all labels into nnU-Net's 1, which is no label of the task but 'foreground'.
    ours = {0: 0, **{new: 1 if export.target == "binary" else old for old, new in export.values}}
    strange = [value for value in np.unique(label).tolist() if value not in ours]
    if strange:
        raise UserError(
            f"{path}: case {info.name}: label values {', '.join(f'{v:g}' for v in strange[:5])} "
            f"are not among those exported ({', '.join(map(str, sorted(ours)))}): {again}"
        )
    table = np.zeros(max(ours) + 1, np.uint8)
    for theirs, value in ours.items():
        table[theirs] = value
    return np.ascontiguousarray(table[label.astype(np.uint8)])


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _distance(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], info: CaseInfo
) -> float:
    """How far apart two affines put the corners of a scan, in mm."""
    d, h, w = info.native_shape
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in (w, h, d)])).reshape(3, -1)
    apart = first[:3] - second[:3]
    return float(np.linalg.norm(apart[:, :3] @ corners + apart[:, 3:], axis=0).max())


def _rows(
    store: StorePlace, manifest: Manifest, export: Export, case: str, predicted: LabelMap
) -> list[Row]:
    task = manifest.task
    of_task = [region.labels for region in regions_of(task, export.target)]
    marked = [(1,)] if export.target == "binary" else of_task
    masks = np.stack([np.isin(predicted, wanted) for wanted in marked])
    regions = scored_regions(task, export.target)
    pairs = pairs_to_score(regions, masks, read_array(store, task.name, case, "label_native"))
    spacing_mm = manifest.cases[case].spacing_mm
    return [
        {
            **{"case": case, "region": region.name, "kind": region.kind},
            **case_metrics(*pairs[region.name], spacing_mm, task.tolerance_mm),
        }
        for region in regions
    ]


def record(scores: Scores, runs: Path, experiment: str) -> tuple[Path, str, str]:
    """Write the run's folder and its MLflow run, named and tagged as those of our own models.

    Returns:
        The folder, the table to print, and a note if MLflow did not take everything ('' else).

    Raises:
        UserError: the folder cannot be written to, or MLflow does not answer (the folder's files
            are whole then, and the same command sends them).
    """
    manifest, task = scores.manifest, scores.manifest.task
    folder = runs / task.name / f"{MODEL}-fold{scores.fold}-{scores.identity}"
    with full_disk_is_a_user_error(runs):
        folder.mkdir(parents=True, exist_ok=True)
    split = make_split(tuple(manifest.cases), task.name, scores.fold, seed=manifest.split_seed)
    about = {
        "data_checksum": manifest.checksum,
        "donor_checksum": "",
        "target": scores.export.target,
        "nnunet": scores.about,
    }
    write_text_atomically(folder / "split.json", json.dumps(split.to_dict(), indent=1))
    write_text_atomically(folder / "run.json", json.dumps(about, indent=1))
    score_table.write_csv(scores.rows, folder / "test_cases.csv")

    summary = score_table.summaries(scores.rows)
    tracker = Tracker(folder, default_uri(runs), experiment, folder.name)
    tracker.params(
        {
            "data": {"task": task.name, "fold": scores.fold, "target": scores.export.target},
            "model": {"name": MODEL},
            "nnunet": scores.about,
        }
    )
    tracker.tags(
        {
            "task": task.name,
            "model": MODEL,
            "fold": scores.fold,
            "fraction": split.fraction,
            "identity": scores.identity,
            "data_checksum": manifest.checksum,
            "donor_checksum": "",
            **{f"nnunet.{key}": value for key, value in scores.about.items()},
            **git_state(),
            **{f"version.{name}": version for name, version in versions().items()},
        }
    )
    tracker.metrics(0, **score_table.tracked(summary, "test"))
    tracker.table(scores.rows, "test_cases.json")
    for name in ("split.json", "run.json", "test_cases.csv"):
        tracker.artifact(folder / name)
    return folder, score_table.table(summary, task.tolerance_mm), tracker.close("FINISHED")
