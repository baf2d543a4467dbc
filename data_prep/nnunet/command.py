"""`mvl nnunet`: the published nnU-Net on our cases and our split, scored with our metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mvl_dist.config import StoreFlag

Configuration = Literal["3d_fullres", "3d_lowres", "2d"]


@dataclass(frozen=True)
class ExportOptions:
    """Write a task of the store in nnU-Net's raw format, with our folds and test cases."""

    store: StoreFlag
    """Store that the task was converted into; says which cases are held out."""
    msd_root: Path
    """Folder of the original scans, as for 'mvl convert'."""
    task: str
    """Task04_Hippocampus, Task04 or 04."""
    output: Path
    """Folder for nnUNet_raw, nnUNet_preprocessed, nnUNet_results; holds one target a task."""
    target: Literal["binary", "labels", "regions"] = "labels"
    """All labels merged, one class a label, or overlapping regions (labels and their unions)."""
    workers: int = 0
    """Processes; 0 takes one a CPU core."""


@dataclass(frozen=True)
class TrainOptions:
    """Plan, train one fold and predict the held-out cases with the installed nnunetv2."""

    output: Path
    """Folder of 'mvl nnunet export'."""
    task: str
    """Task04_Hippocampus, Task04 or 04."""
    fold: int
    """0 to 4."""
    configuration: Configuration = "3d_fullres"
    """One of nnU-Net's configurations; the cascade is left out."""
    trainer: str = "nnUNetTrainer"
    """nnU-Net's trainer class: the default trains 1000 epochs, nnUNetTrainer_1epoch one."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where to train and predict."""
    workers: int = 0
    """Processes for planning and preprocessing; 0 takes one a CPU core."""


@dataclass(frozen=True)
class ImportOptions:
    """Score nnU-Net's predictions of the held-out cases with our metrics, and track them."""

    output: Path
    """Folder of 'mvl nnunet export'."""
    store: StoreFlag
    """Store whose untouched labels are the reference."""
    task: str
    """Task04_Hippocampus, Task04 or 04."""
    fold: int
    """0 to 4."""
    runs: Path
    """Folder of our runs (--output of 'mvl train'), which this one will stand beside."""
    predictions: Path | None = None
    """Folder of CASE.nii.gz; by default where 'mvl nnunet train' put them."""
    configuration: Configuration = "3d_fullres"
    """What was trained."""
    trainer: str = "nnUNetTrainer"
    """What was trained."""
    experiment: str = "mvl-dist"
    """MLflow experiment."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl nnunet`."""
    options = tyro.extras.subcommand_cli_from_dict(
        {"export": ExportOptions, "train": TrainOptions, "import": ImportOptions},
        args=list(argv),
        prog="mvl nnunet",
    )
    if isinstance(options, ExportOptions):
        return _export(options)
    if isinstance(options, TrainOptions):
        return _train(options)
    return _import(options)


def _export(options: ExportOptions) -> int:
    from data_prep.nnunet.export import export

    layout, done, written = export(
        options.store,
        options.msd_root,
        options.task,
        options.output,
        options.target,
        options.workers,
    )
    training = len(done.folds[0]["train"]) + len(done.folds[0]["val"])
    print(
        f"{layout.raw}: {training} training and {len(done.test)} held-out cases, "
        f"{sum(done.files.values()) / 1e6:.1f} MB{'' if written else ', there already'}"
    )
    return 0


def _train(options: TrainOptions) -> int:
    from data_prep.nnunet.layout import find_export
    from data_prep.nnunet.run import Training, train

    layout, export = find_export(options.output, options.task)
    training = Training(
        options.fold, options.configuration, options.trainer, options.device, options.workers
    )
    print(f"predictions of the held-out cases: {train(layout, export, training)}")
    return 0


def _import(options: ImportOptions) -> int:
    from data_prep.nnunet.collect import record, score
    from mvl_dist.tracking import default_uri, open_command

    scores = score(
        options.output,
        options.store,
        options.task,
        options.fold,
        options.configuration,
        options.trainer,
        options.predictions,
    )
    folder, table, left = record(scores, options.runs, options.experiment)
    version = scores.about["nnunetv2"]
    print(
        f"{scores.manifest.task.name}, {len(scores.export.test)} held-out test cases, nnunetv2 "
        f"{version}, {options.trainer} {options.configuration}, fold {options.fold}\n\n{table}\n\n"
        f"per case     {folder / 'test_cases.csv'}\n"
        f"MLflow       {open_command(default_uri(options.runs))}"
    )
    if left:
        print(f"note: {left}")
    return 0
