"""Runs in MLflow without their own process: noted as failed, or sent what their journals hold."""

from __future__ import annotations

import os
from pathlib import Path

from mvl_dist.errors import UserError
from mvl_dist.journal import RUN_FILE, SPOOL, Journal, RunFile
from mvl_dist.mlflow_server import connect, run_on_server, send, short


def mark_failed(uri: str, run_id: str) -> None:
    """Note for a run whose process could not that it failed."""
    if uri.startswith(SPOOL):
        Journal.end(Path(run_id), "FAILED")
    else:
        connect(uri).set_terminated(run_id, "FAILED")


def fail_for_rank_0(folder: Path) -> None:
    """`mark_failed` of a run's folder, by another rank; what a server that is away for 20 s does
    not take, `mvl sync` sends.
    """
    about = RunFile.read(folder)
    if about is None:
        return
    try:
        mark_failed(about.uri, about.run_id or str(folder))
    except Exception:
        Journal.end(folder, "FAILED")


def sync(folder: Path) -> int:
    """Send what a run's journal still holds; return the number of operations sent.

    A spooled run is made on the server first.

    Raises:
        UserError: the folder is no run's, or the server still does not answer.
    """
    about = RunFile.read(folder)
    if about is None:
        raise UserError(f"{folder}: no run of mvl_dist/train.py ({RUN_FILE} is missing)")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or about.uri
    if uri.startswith(SPOOL):
        raise UserError(f"{folder} was spooled: set MLFLOW_TRACKING_URI to the server it goes to")
    try:
        client = connect(uri)
        about = run_on_server(client, uri, about, folder)
        journal = Journal(folder)
        operations, offset = journal.waiting()
        journal.close()
        send(client, about.run_id, operations)
    except Exception as error:
        raise UserError(
            f"MLflow at {uri} does not take the run ({short(error)}): start it and call "
            f"'mvl sync {folder}' again"
        ) from error
    if operations:
        journal.mark_sent(offset)
    return len(operations)
