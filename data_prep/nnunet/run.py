"""The installed `nnunetv2` package plans, trains and predicts; the bridge starts its commands."""

from __future__ import annotations

import fcntl
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.nnunet.layout import (
    ENDING,
    PLANS,
    PREDICTED,
    PREPROCESSED,
    RAW,
    RESULTS,
    Export,
    Layout,
    ensure_folds,
    model_name,
)
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, full_disk_is_a_user_error, write_text_atomically
from mvl_dist.parallel import default_workers
from mvl_dist.splits import NUM_FOLDS

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Training:
    """One model of nnU-Net's.

    Attributes:
        configuration: `2d`, `3d_fullres` or `3d_lowres`.
        trainer: name of a trainer class of the package, or of one in $nnUNet_extTrainer.
        device: `cuda` or `cpu`.
        workers: processes for planning and preprocessing; 0 takes one a core.
    """

    fold: int
    configuration: str
    trainer: str
    device: str
    workers: int = 0

    @property
    def model(self) -> str:
        """nnU-Net's name of the model's folder."""
        return model_name(self.trainer, self.configuration)


def train(layout: Layout, export: Export, training: Training) -> Path:
    """Plan, train and predict the held-out cases; what is done already is not done again.

    Returns:
        The folder of the predictions.

    Raises:
        UserError: the package or the device is missing, or one of its commands failed.
    """
    commands = {name: _command(name) for name in ("plan_and_preprocess", "train", "predict")}
    if not 0 <= training.fold < NUM_FOLDS:
        raise UserError(f"fold {training.fold} does not exist: --fold takes 0 to {NUM_FOLDS - 1}")
    _check_torch(training)
    with _planning_alone(layout):
        ensure_folds(layout, export.folds)
        _plan(layout, export, training, commands["plan_and_preprocess"])
        ensure_folds(layout, export.folds)
    _train(layout, training, commands["train"])
    return _predict(layout, export, training, commands["predict"])


def _command(name: str) -> Path:
    """Path of one of the package's console commands, which lie beside this Python."""
    path = Path(sys.executable).parent / f"nnUNetv2_{name}"
    if importlib.util.find_spec("nnunetv2") is None or not path.exists():
        raise UserError(
            f"the nnunetv2 package is not installed for {sys.executable}: run "
            "pip install -e '.[nnunet]' with that Python"
        )
    return path


def _check_torch(training: Training) -> None:
    import torch  # seconds, and only a training needs it

    if training.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; pass --device cpu to train without")
    if training.trainer == "nnUNetTrainer":
        return  # nnU-Net finds this one before it imports the others, which need torchvision
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        raise UserError(
            f"--trainer {training.trainer}: nnU-Net looks for it among trainers that import "
            f"torchvision, and torchvision {importlib.metadata.version('torchvision')} does not go "
            f"with torch {torch.__version__} ({' '.join(str(error).split())}): install the "
            "torchvision of the same build"
        ) from error


def _run(command: Path, arguments: Sequence[str], layout: Layout) -> None:
    """Run a command of the package in the layout's folders; its output goes to the terminal."""
    folders = {name: str((layout.output / name).resolve()) for name in (RAW, PREPROCESSED, RESULTS)}
    line = [str(command), *arguments]
    print(f"+ {command.name} {' '.join(arguments)}", flush=True)
    with (
        subprocess.Popen(line, env={**os.environ, **folders}) as process,
        _passing_on_sigterm(process),
    ):
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C, which may have reached this process alone
            process.kill()
            raise
    if code:
        how = f"status {code}" if code > 0 else f"signal {-code}"
        raise UserError(
            f"{command.name} on {layout.dataset} ended with {how}; its own message stands above: "
            "mend that and run the same command again, what was done is kept"
        )


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whoever ends this process means the command that it waits for, which would go on alone."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _planning_alone(layout: Layout) -> Iterator[None]:
    """Five folds may be started at once; the first plans, the others wait for it."""
    with full_disk_is_a_user_error(layout.output):
        layout.preprocessed.mkdir(parents=True, exist_ok=True)
        lock = (layout.preprocessed / ".mvl_planning").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _plan(layout: Layout, export: Export, training: Training, command: Path) -> None:
    """Fingerprint, plans and preprocessed cases of one configuration."""
    planned = layout.preprocessed / f"mvl_planned_{training.configuration}.json"
    note = json.dumps({"sources": export.sources, "target": export.target})
    if planned.exists() and planned.read_text() == note:
        return
    workers = str(training.workers or default_workers())
    number = str(int(layout.dataset[7:10]))
    _run(
        command,
        [
            *("-d", number, "-c", training.configuration, "-np", workers, "-npfp", workers),
            # --clean: a fingerprint of other files, were one there, would be used unseen.
            *("--verify_dataset_integrity", "--clean"),
        ],
        layout,
    )
    plans = json.loads((layout.preprocessed / f"{PLANS}.json").read_text())
    if training.configuration not in plans["configurations"]:
        raise UserError(
            f"nnU-Net plans no {training.configuration} for {layout.dataset}: pass --configuration "
            f"{' or '.join(name for name in plans['configurations'] if 'cascade' not in name)}"
        )
    write_text_atomically(planned, note)


def _train(layout: Layout, training: Training, command: Path) -> None:
    results = layout.results(training.model, training.fold)
    if (results / CHECKPOINTS[0]).exists() and (results / "validation" / "summary.json").exists():
        return
    arguments = [
        *(layout.dataset, training.configuration, str(training.fold)),
        *("-tr", training.trainer, "-p", PLANS, "-device", training.device),
    ]
    if any((results / name).exists() for name in CHECKPOINTS):
        arguments.append("--c")
    _run(command, arguments, layout)


def _predict(layout: Layout, export: Export, training: Training, command: Path) -> Path:
    """Predict the held-out cases beside their place, then rename them there."""
    final = layout.predictions(training.model, training.fold)
    if (final / PREDICTED).exists():
        return final
    partial = final.with_name(f"{PARTIAL}{final.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed prediction
    with full_disk_is_a_user_error(layout.output):
        partial.mkdir(parents=True)
    _run(
        command,
        [
            *("-i", str((layout.raw / "imagesTs").resolve()), "-o", str(partial.resolve())),
            *("-d", layout.dataset, "-c", training.configuration, "-f", str(training.fold)),
            *("-tr", training.trainer, "-p", PLANS, "-device", training.device),
        ],
        layout,
    )
    missing = [case for case in export.test if not (partial / f"{case}{ENDING}").exists()]
    if missing:
        raise UserError(
            f"{command.name} left no prediction of case {missing[0]} in {partial}: its own message "
            "stands above; run the same command again"
        )
    about = {
        "nnunetv2": importlib.metadata.version("nnunetv2"),
        "torch": importlib.metadata.version("torch"),
        "trainer": training.trainer,
        "configuration": training.configuration,
        "plans": PLANS,
        "fold": training.fold,
        "device": training.device,
        "sources": export.sources,
    }
    write_text_atomically(partial / PREDICTED, json.dumps(about, indent=1))
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final
