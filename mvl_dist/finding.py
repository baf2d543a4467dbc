"""Where a run lies, by what a person has of it: a folder, an exported one, or an id in MLflow."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from mvl_dist.checkpoint import BEST
from mvl_dist.errors import UserError
from mvl_dist.files import full_disk_is_a_user_error
from mvl_dist.journal import RUN_FILE, RunFile
from mvl_dist.postprocess import POSTPROCESSING
from mvl_dist.runs import ABOUT, CONFIG
from mvl_dist.tracked import artifact_file, get_run
from mvl_dist.tracking import default_uri

RUN_ID = re.compile(r"[0-9a-f]{32}")
# Two folders deep, so that nobody takes what is below for runs that were trained here.
DOWNLOADED = "from-mlflow"
# Artifacts of a run that make its folder, and those that it may lack.
ARTIFACTS = (CONFIG, ABOUT, "split.json", f"model/{BEST}")
OPTIONAL = ("test_cases.csv", POSTPROCESSING)


def find_run(run: str) -> Path:
    """The folder of a run, fetched from MLflow where it is not on this machine.

    Args:
        run: a folder, or an MLflow run id. An id is looked for in $MVL_OUTPUT (else ./runs), then
            asked of $MLFLOW_TRACKING_URI (else of the SQLite file there).

    Raises:
        UserError: neither, no such run, one without a trained model, or a server that does not
            answer.
    """
    if Path(run).is_dir():
        return Path(run)
    if not RUN_ID.fullmatch(run):
        raise UserError(
            f"{run}: no such folder, and no MLflow run id (32 digits of 0-9, a-f); a training "
            "prints its folder when it ends, MLflow shows the id on the run's page"
        )
    output = Path(os.environ.get("MVL_OUTPUT", "runs"))
    for pattern in (f"*/*/{RUN_FILE}", f"{DOWNLOADED}/*/*/{RUN_FILE}"):
        for file in sorted(output.glob(pattern)):
            about = RunFile.read(file.parent)
            if about is not None and about.run_id == run and (file.parent / CONFIG).is_file():
                return file.parent
    return _from_mlflow(run, output)


def find_model(run: str) -> Path:
    """The folder of a trained model: config.yaml, run.json, split.json and best.safetensors.

    Args:
        run: as `find_run`, or a folder that `mvl export` wrote.

    Raises:
        UserError: as `find_run`; or the folder holds no trained model.
    """
    folder = find_run(run)
    missing = [name for name in (CONFIG, ABOUT) if not (folder / name).is_file()]
    if missing:
        below = sorted(path.parent for path in folder.glob(f"**/{CONFIG}"))[:3]
        hint = f"; did you mean {' or '.join(map(str, below))}?" if below else ""
        raise UserError(
            f"{folder}: neither a run's folder nor an exported one ({missing[0]} is missing){hint}"
        )
    if not (folder / BEST).is_file():
        raise UserError(
            f"{folder}: no trained model there yet ({BEST} is missing): the run has not reached "
            "its first validation; go on with it by the same 'mvl train'"
        )
    return folder


def _from_mlflow(run_id: str, output: Path) -> Path:
    uri = default_uri(output)
    if uri.startswith("spool:"):
        raise UserError(
            f"run {run_id} is not in {output}, and MLFLOW_TRACKING_URI names no server to ask: set "
            "it, or pass the run's folder"
        )
    found = get_run(uri, run_id)
    if found is None:
        raise UserError(
            f"no run {run_id} in {output} or in MLflow at {uri}: 'mvl study status --json' and "
            "MLflow's pages show ids; set MLFLOW_TRACKING_URI or MVL_OUTPUT if it lies elsewhere"
        )
    task = found.data.params.get("data.task", "unknown")
    there = Path(found.data.params.get("output", "")) / task / found.info.run_name
    about = RunFile.read(there)
    if about is not None and about.run_id == run_id:
        return there
    folder = output / DOWNLOADED / task / found.info.run_name
    with full_disk_is_a_user_error(output):
        folder.mkdir(parents=True, exist_ok=True)
    for file in (*ARTIFACTS, *OPTIONAL):
        fetched = artifact_file(uri, run_id, file, folder)
        if fetched is None and file in OPTIONAL:
            continue
        if fetched is None:
            shutil.rmtree(folder)
            raise UserError(
                f"run {run_id} ({found.info.run_name}, {found.info.status}) has no {file} in "
                f"MLflow at {uri}: it was not trained to its end, or not by 'mvl train'"
            )
        fetched.replace(folder / Path(file).name)
    # Last: a folder without it was not fetched whole.
    experiment = found.data.params.get("experiment", "")
    RunFile(uri, run_id, experiment, found.info.run_name).write(folder)
    return folder
