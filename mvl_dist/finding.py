"""Where a trained model lies: a run's folder, an exported one, or an MLflow run to be fetched."""

from __future__ import annotations

import re
from pathlib import Path

from mvl_dist.checkpoint import BEST
from mvl_dist.config import RunConfig
from mvl_dist.errors import UserError
from mvl_dist.runs import ABOUT, CONFIG
from mvl_dist.tracking import default_uri, fetch_artifacts

RUN_ID = re.compile(r"[0-9a-f]{32}")
# Artifact of a run -> its name in a run's folder.
ARTIFACTS = {CONFIG: CONFIG, ABOUT: ABOUT, "split.json": "split.json", f"model/{BEST}": BEST}
OPTIONAL = {"test_cases.csv": "test_cases.csv"}


def find_model(run: str, downloads: Path) -> Path:
    """The folder of a trained model: config.yaml, run.json, split.json and best.safetensors.

    Args:
        run: a run's folder, an exported folder, or an MLflow run id (at $MLFLOW_TRACKING_URI, else
            in the SQLite file of $MVL_OUTPUT).
        downloads: where the files of a run id are put.

    Raises:
        UserError: nothing goes by that name, it holds no trained model, or the server is away.
    """
    folder = Path(run)
    if not folder.exists() and RUN_ID.fullmatch(run):
        return _fetch(run, downloads)
    if not folder.is_dir():
        raise UserError(
            f"{run}: no such folder, and no MLflow run id (32 digits of 0-9, a-f); a "
            "training prints its folder when it ends"
        )
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


def _fetch(run_id: str, downloads: Path) -> Path:
    uri = default_uri(RunConfig().output)
    folder = downloads / run_id
    missing = fetch_artifacts(uri, run_id, ARTIFACTS | OPTIONAL, folder)
    lacking = [name for name in ARTIFACTS if name in missing]
    if lacking:
        raise UserError(
            f"MLflow run {run_id} at {uri} holds no trained model ({lacking[0]} is missing): it "
            "has not ended well, or is no run of 'mvl train'; a run's own folder will do as --run"
        )
    return folder
