"""`mvl predict`: label maps of new scans, by one trained model or several averaged."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, full_disk_is_a_user_error
from mvl_dist.parallel import default_workers, run_cases

if TYPE_CHECKING:
    from mvl_dist.prediction_files import Job, Predictor


@dataclass(frozen=True)
class PredictArguments:
    """Segment new scans; each result lies exactly over its scan, beside a JSON of volumes."""

    run: tuple[str, ...]
    """MLflow run id, run folder or exported folder; several (the folds) are averaged as
    probabilities."""
    input: tuple[Path, ...]
    """NIfTI files, or folders of them: all channels in one file, or one file a channel named
    CASE_0000.nii.gz or CASE_FLAIR.nii.gz."""
    output: Path
    """Folder of CASE.nii.gz and CASE.json; what is there already is kept."""
    probabilities: bool = False
    """Write CASE_probabilities.nii.gz as well, one volume a region."""
    overwrite: bool = False
    """Predict again what is there already."""
    largest_component: bool = False
    """Keep only the largest component of the regions that 'mvl evaluate RUN --largest-component'
    chose on validation cases."""
    workers: int = 0
    """Processes; 0 takes one a GPU, and one on a machine without."""
    donor: str = ""
    """Where the model's language-model block lies now: known name or path."""
    assume_orientation: str = ""
    """How the axes run in files whose headers do not say, e.g. LAS; they are refused without."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl predict`; 1 if a scan could not be predicted, which does not stop others."""
    arguments = tyro.cli(
        PredictArguments,
        args=list(argv),
        prog="mvl predict",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from mvl_dist.finding import find_model

    return _predict(arguments, [find_model(run) for run in arguments.run])


def _predict(arguments: PredictArguments, folders: Sequence[Path]) -> int:
    from mvl_dist.inputs import find_cases
    from mvl_dist.prediction_files import Job, common_recipe, describe_models, is_done
    from mvl_dist.scans import check_orientation

    if arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers}: must not be negative")
    orientation = arguments.assume_orientation and check_orientation(arguments.assume_orientation)
    recipe = common_recipe(folders)
    largest = _largest(folders) if arguments.largest_component else None
    cases = find_cases(arguments.input, recipe.task.modalities, len(recipe.modalities))
    inputs = {path.resolve().parent for case in cases for path in case.files}
    if arguments.output.resolve() in inputs:
        raise UserError(f"--output {arguments.output}: holds the scans; choose another folder")
    _make_folder(arguments.output)
    models = describe_models(folders)
    jobs = [
        Job(case, arguments.output, arguments.probabilities, orientation, models, largest)
        for case in cases
    ]
    todo = [job for job in jobs if arguments.overwrite or not is_done(job)]
    gpus = _gpus()
    workers = min(arguments.workers or max(len(gpus), 1), max(len(todo), 1))
    where = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}" if gpus else "the CPU"
    print(
        f"{recipe.task.name}, {', '.join(_name(m) for m in models)}: {len(todo)} of {len(jobs)} "
        f"scans to predict on {where}, {workers} process{'es' * (workers > 1)}",
        flush=True,
    )
    threads = max(default_workers() // workers, 1)
    begin = partial(_begin, tuple(folders), arguments.donor, gpus)
    bad = [
        problem
        for problem in run_cases(_work, todo, workers, "predict", begin=begin, threads=threads)
        if problem
    ]
    for problem in bad:
        print(f"error: {problem}", file=sys.stderr)
    print(
        f"{len(todo) - len(bad)} predicted, {len(jobs) - len(todo)} kept"
        f"{f', {len(bad)} refused' if bad else ''}: {arguments.output}"
    )
    return 1 if bad else 0


def _largest(folders: Sequence[Path]) -> tuple[str, ...]:
    """The regions that the models' validation cases chose together, as for an ensemble."""
    from mvl_dist.checkpoint import BEST
    from mvl_dist.postprocess import choice_of_model, combine

    choice = combine([choice_of_model(folder, BEST) for folder in folders])
    regions = ", ".join(choice.regions) or "no region"
    print(f"largest component: kept alone in {regions}, by {choice.cases} validation cases")
    return choice.regions


def _name(model: object) -> str:
    assert isinstance(model, dict)
    return f"{model['model']} fold {model['fold']}"


def _make_folder(output: Path) -> None:
    with full_disk_is_a_user_error(output):
        output.mkdir(parents=True, exist_ok=True)
        for partial_file in output.glob(f"{PARTIAL}*"):  # of a killed start
            partial_file.unlink(missing_ok=True)
    if not os.access(output, os.W_OK):
        raise UserError(f"--output {output}: may not be written to; choose another folder")


def _gpus() -> tuple[str, ...]:
    """Names of the GPUs that torch can use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    from mvl_dist.launch import visible_gpus

    return visible_gpus() if torch.cuda.is_available() else ()


# ------------------------------------------------------------------------- inside a worker process

_predictor: Predictor | None = None


def _begin(folders: tuple[Path, ...], donor: str, gpus: tuple[str, ...], number: int) -> None:
    """Load the models, in a process among several onto a GPU of its own."""
    global _predictor
    import torch

    from mvl_dist.prediction_files import Predictor

    if gpus and not torch.cuda.is_initialized():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    _predictor = Predictor(folders, donor)


def _work(job: Job) -> str:
    assert _predictor is not None
    return _predictor.run(job)
