"""Does a training ever wait for MLflow? 16 runs write to one server at once.

    python -m benchmarks.mlflow_load [SECONDS]

For SQLite and PostgreSQL behind `mlflow server`: how long the sending of a batch takes (by a thread
of its own), how long a call in the training loop takes, and whether all that was written arrived.
The limit is the journal: a line written and flushed to the page cache.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

from mvl_dist.tracking import Tracker
from tests.servers import mlflow_server, postgres

RUNS = 16
STEPS_A_SECOND = 10  # a fast training; the paper's takes seconds a step
KEYS = ("train_loss", "grad_norm", "images_per_second")


class Timed(Tracker):
    """A tracker that keeps how long each batch took."""

    seconds: list[float]

    def flush(self) -> bool:
        started = time.perf_counter()
        sent = super().flush()
        self.__dict__.setdefault("seconds", []).append(time.perf_counter() - started)
        return sent


def train(uri: str, folder: Path, seconds: float, results: multiprocessing.Queue[object]) -> None:
    """Log as a training does, one step after another."""
    folder.mkdir(parents=True)
    tracker = Timed(folder, uri, "load", folder.name)
    calls, step, ends = [], 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        step += 1
        started = time.perf_counter()
        tracker.metrics(step, **dict.fromkeys(KEYS, 1 / step))
        calls.append(time.perf_counter() - started)
        time.sleep(1 / STEPS_A_SECOND)
    regular = list(tracker.__dict__.get("seconds", []))
    left = tracker.close("FINISHED")
    results.put((tracker.run_id, step, calls, regular, left))


def measure(name: str, uri: str, folder: Path, seconds: float) -> None:
    """Print one line for a server."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=train, args=(uri, folder / "out" / "t" / f"{n}", seconds, results))
        for n in range(RUNS)
    ]
    for process in processes:
        process.start()
    rows = [results.get() for _ in processes]
    for process in processes:
        process.join()
    client = MlflowClient(uri)
    lost = sum(
        step - len(client.get_metric_history(run_id, key))
        for run_id, step, *_ in rows
        for key in KEYS
    )
    flushes = sorted(second for *_, regular, _ in rows for second in regular)
    calls = sorted(second for _, _, calls, *_ in rows for second in calls)
    centiles = statistics.quantiles(flushes, n=100)
    print(
        f"{name:11} {len(flushes):4d} batches: median {1000 * statistics.median(flushes):6.0f} ms, "
        f"p95 {1000 * centiles[94]:6.0f} ms, longest {1000 * flushes[-1]:6.0f} ms; "
        f"{len(calls):5d} calls of the loop: median {1e6 * statistics.median(calls):4.0f} us, "
        f"p99 {1e6 * calls[int(0.99 * len(calls))]:5.0f} us; "
        f"{len(KEYS) * len(calls)} values written, {lost} lost",
        flush=True,
    )


def main() -> None:
    """Measure both databases."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    versions = {name: importlib.metadata.version(name) for name in ("mlflow", "psycopg2-binary")}
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {versions}")
    print(f"{RUNS} runs for {seconds:.0f} s, {STEPS_A_SECOND} steps/s each, server with 2 workers")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "sqlite").mkdir()
        with mlflow_server(root / "sqlite", workers=2) as server:
            measure("SQLite", server.uri, root / "sqlite", seconds)
        (root / "server").mkdir()
        with postgres(root) as database, mlflow_server(root / "server", database, 2) as server:
            measure("PostgreSQL", server.uri, root / "server", seconds)


if __name__ == "__main__":
    main()
