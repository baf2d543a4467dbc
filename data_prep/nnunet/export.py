"""A task of the store in nnU-Net's raw format: the original scans, our labels, our split."""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from data_prep.nifti import SourceFile, read_source
from data_prep.nnunet.labels import Labels, labels_for
from data_prep.nnunet.layout import (
    ENDING,
    EXPORTED,
    PREPROCESSED,
    RAW,
    RESULTS,
    Export,
    Fold,
    Layout,
    dataset_name,
    ensure_folds,
    read_export,
    sources_checksum,
)
from data_prep.source import Pair, list_pairs, task_folders
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, full_disk_is_a_user_error
from mvl_dist.nifti import parse_nifti
from mvl_dist.parallel import default_workers, run_cases
from mvl_dist.place import StorePlace
from mvl_dist.splits import NUM_FOLDS, make_split
from mvl_dist.store import Manifest, read_manifest
from mvl_dist.tasks import load_task

PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


@dataclass(frozen=True)
class _Job:
    """A case to write; sent to another process.

    Attributes:
        sources: its two files as the manifest knows them.
        part: `Tr` or `Ts`.
        values: label value of the task -> label value in nnU-Net's files.
    """

    pair: Pair
    sources: Mapping[str, Mapping[str, Any]]
    folder: Path
    part: str
    values: Mapping[int, int]


def export(
    store: StorePlace, msd_root: Path, task: str, output: Path, target: str, workers: int = 0
) -> tuple[Layout, Export, bool]:
    """Write a task below `output`, or do nothing if it is there whole.

    Returns:
        Where it lies, what it holds, and whether anything was written.

    Raises:
        UserError: no such task, scans other than those that were converted, another export in the
            way, or a full disk. Nothing half-written is left.
    """
    manifest = read_manifest(store, task)
    labels = labels_for(manifest.task, target)
    wanted = _plan(manifest, labels, target)
    layout = Layout(output, wanted.dataset)
    if _is_there(layout, wanted):
        ensure_folds(layout, wanted.folds)
        return layout, read_export(layout.raw / EXPORTED), False
    pairs = _pairs(manifest, msd_root)
    parents = (output / RAW, output / PREPROCESSED, output / RESULTS)
    with full_disk_is_a_user_error(output):
        for parent in parents:
            parent.mkdir(parents=True, exist_ok=True)
    for left in (output / RAW).glob(f"{PARTIAL}{wanted.dataset}-*"):  # of a killed export
        shutil.rmtree(left, ignore_errors=True)
    partial = output / RAW / f"{PARTIAL}{wanted.dataset}-{uuid.uuid4().hex[:8]}"
    try:
        with full_disk_is_a_user_error(output):
            for part in PARTS:
                (partial / part).mkdir(parents=True)
            files = _write_cases(manifest, pairs, partial, labels, workers)
            _write_dataset(manifest, labels, partial)
            done = replace(wanted, files=files)
            done.write(partial)
            if layout.raw.exists():
                shutil.rmtree(layout.raw)
            partial.rename(layout.raw)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    ensure_folds(layout, done.folds)
    return layout, done, True


def _plan(manifest: Manifest, labels: Labels, target: str) -> Export:
    """The export that a store asks for, its files not yet known."""
    task = manifest.task.name
    folds: list[Fold] = []
    for fold in range(NUM_FOLDS):
        split = make_split(tuple(manifest.cases), task, fold, seed=manifest.split_seed)
        if set(split.test) != set(manifest.test_cases):
            raise UserError(
                f"{task}: the store's held-out cases are not those of this program's split: "
                "convert again with 'mvl convert --overwrite'"
            )
        folds.append({"train": sorted(split.train), "val": sorted(split.validation)})
    return Export(
        task=task,
        dataset=dataset_name(task),
        target=target,
        sources=sources_checksum(manifest),
        values=labels.values,
        test=tuple(sorted(manifest.test_cases)),
        folds=tuple(folds),
        files={},
    )


def _is_there(layout: Layout, wanted: Export) -> bool:
    """Whether the export was completed and is whole; refuses what else stands in its place."""
    for folder in (RAW, PREPROCESSED, RESULTS):
        for path in (layout.output / folder).glob(f"{layout.dataset[:10]}_*"):
            if path.name != layout.dataset:
                raise UserError(
                    f"{path}: has the number of {layout.dataset}, and nnU-Net tells its datasets "
                    "apart by number: choose another --output"
                )
    note = layout.raw / EXPORTED
    if not note.exists():
        if layout.raw.exists():
            raise UserError(
                f"{layout.raw}: there already, and not by 'mvl nnunet export': choose another "
                "--output"
            )
        return False
    there = read_export(note)
    for what, old, new in (
        ("task", there.task, wanted.task),
        ("--target", there.target, wanted.target),
        ("data", there.sources, wanted.sources),
        ("label values", there.values, wanted.values),
        ("folds", there.folds, wanted.folds),
    ):
        if old != new:
            detail = f" ({old} there, {new} asked for)" if isinstance(old, str) else ""
            raise UserError(
                f"{layout.raw}: was exported with another {what}{detail}: choose another --output, "
                f"or delete {layout.dataset} in all its folders"
            )
    return all(
        path.is_file() and path.stat().st_size == size
        for path, size in ((layout.raw / name, size) for name, size in there.files.items())
    )


def _pairs(manifest: Manifest, msd_root: Path) -> dict[str, Pair]:
    """The listed files of every case of the store."""
    (folder,) = task_folders(msd_root, [manifest.task.name])
    _, dataset = load_task(folder)
    pairs = {pair.name: pair for pair in list_pairs(folder, dataset)}
    missing = sorted(set(manifest.cases) - set(pairs))
    if missing:
        raise UserError(
            f"{folder / 'dataset.json'}: does not list case {missing[0]}, which the store holds: "
            "pass the --msd-root that the store was converted from"
        )
    return {name: pairs[name] for name in sorted(manifest.cases)}


def _write_cases(
    manifest: Manifest, pairs: Mapping[str, Pair], folder: Path, labels: Labels, workers: int
) -> dict[str, int]:
    """Write every case below `folder`; returns the size of each file."""
    jobs = [
        _Job(
            pair,
            manifest.cases[name].sources,
            folder,
            "Ts" if name in manifest.test_cases else "Tr",
            dict(labels.values),
        )
        for name, pair in pairs.items()
    ]
    what = f"{manifest.task.name}: nnU-Net export"
    for _ in run_cases(_write_case, jobs, workers or default_workers(), what):
        pass
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob(f"*{ENDING}"))
    }


def _write_dataset(manifest: Manifest, labels: Labels, folder: Path) -> None:
    task = manifest.task
    # nnU-Net knows CT by this name alone; every other name means a z-score for each case.
    names = ("CT",) if task.intensity == "ct" else task.modalities
    dataset: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": labels.entries,
        "numTraining": len(manifest.cases) - len(manifest.test_cases),
        "file_ending": ENDING,
        "name": task.name,
        "reference": task.source,
    }
    if labels.class_order:
        dataset["regions_class_order"] = list(labels.class_order)
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))


def _write_case(job: _Job) -> None:
    """Write one case: a file a channel and a label map, in the image's geometry."""
    image_source, data = read_source(job.pair.image, job.pair.root)
    label_source, label_data = read_source(job.pair.label, job.pair.root)
    _check_converted(job, "image", image_source, job.pair.image)
    _check_converted(job, "label", label_source, job.pair.label)
    image = parse_nifti(job.pair.image, data)
    name = job.folder / f"images{job.part}" / job.pair.name
    if len(image.shape) == 3 and data[:2] == b"\x1f\x8b" and _is_oriented(image):
        Path(f"{name}_0000{ENDING}").write_bytes(data)
    else:
        voxels = image.dataobj.get_unscaled()
        for channel in range(image.shape[3] if voxels.ndim > 3 else 1):
            volume = voxels[..., channel] if voxels.ndim > 3 else voxels
            scaling = (image.dataobj.slope, image.dataobj.inter)
            _write_volume(Path(f"{name}_{channel:04d}{ENDING}"), image, volume, scaling)
    label = np.asanyarray(parse_nifti(job.pair.label, label_data).dataobj)
    renumbered = np.zeros(image.shape[:3], np.uint8)
    for ours, theirs in job.values.items():
        renumbered[label.reshape(renumbered.shape) == ours] = theirs
    path = job.folder / f"labels{job.part}" / f"{job.pair.name}{ENDING}"
    _write_volume(path, image, renumbered, (1.0, 0.0))


def _check_converted(job: _Job, role: str, source: SourceFile, path: Path) -> None:
    known = job.sources[role]["sha256"]
    if source.sha256 != known:
        raise UserError(
            f"{path}: case {job.pair.name}: not the file that the store was converted from (sha256 "
            f"{source.sha256[:12]}, then {known[:12]}): pass the --msd-root of then, or convert "
            "again"
        )


def _is_oriented(image: nib.Nifti1Image) -> bool:
    return bool(image.header["qform_code"] or image.header["sform_code"])


def _write_volume(
    path: Path, image: nib.Nifti1Image, voxels: npt.NDArray[Any], scaling: tuple[float, float]
) -> None:
    """Write stored voxels (x, y, z) with the header of `image`, bit for bit.

    Written by hand because nibabel would turn voxels with a slope into floats and scale them anew.
    A header without orientation gets the one that the store assumed: ITK, which nnU-Net reads with,
    would assume another, and the prediction would lie elsewhere than our label.
    """
    header = image.header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header["scl_slope"], header["scl_inter"] = scaling
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    if not _is_oriented(image):
        header.set_sform(image.affine, code=1)
    extensions = bytes(header.single_vox_offset - header.sizeof_hdr)
    data = header.binaryblock + extensions + voxels.tobytes(order="F")
    path.write_bytes(gzip.compress(data, compresslevel=1, mtime=0))
