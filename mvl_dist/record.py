"""Results that come after a training, into its run in MLflow: through its journal, as all else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvl_dist.ended_runs import sync
from mvl_dist.errors import UserError
from mvl_dist.journal import SPOOL, Journal, RunFile
from mvl_dist.tracking import table_columns


def record(
    folder: Path,
    step: int,
    metrics: Mapping[str, float],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    artifacts: Sequence[Path] = (),
) -> str:
    """Add metrics, tables and files to the MLflow run of a folder, if it has one.

    Args:
        step: the optimizer step that the model is of.
        tables: file name (.json) -> rows.

    Returns:
        A line on where they went; '' for a folder without a run in MLflow.
    """
    about = RunFile.read(folder)
    if about is None:
        return ""
    operations: list[dict[str, Any]] = [
        {"op": "table", "columns": table_columns(rows), "file": file}
        for file, rows in tables.items()
    ]
    operations += [
        {"op": "artifact", "path": str(path.resolve()), "folder": None} for path in artifacts
    ]
    if metrics:
        operations.append({"op": "metrics", "step": step, "values": dict(metrics)})
    journal = Journal(folder)
    for operation in operations:
        journal.append({"time_ms": int(time.time() * 1000), **operation})
    journal.close()
    if about.uri.startswith(SPOOL):
        return f"'mvl sync {folder}' sends it to MLflow with the run"
    try:
        sync(folder)
    except UserError as error:
        return f"note: {error}"
    return f"MLflow       run {about.run_id} at {about.uri}"
