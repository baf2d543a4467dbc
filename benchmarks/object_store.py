"""How fast a store in an object store some way off comes as batches, beside the same in a folder.

    python -m benchmarks.object_store [--parts epochs pace training] [--server nginx|moto] ...

`epochs`: samples a second of first epochs, through an empty node's cache and by processes that have
read nothing yet, and of later ones; folder and S3 take turns, and ratios are taken within a round.
`pace`: a consumer that computes for so long a batch, as a GPU does: how much of its time it waits.
`training`: the same of the project's own training on a CPU, as MLflow has it.

Every request waits `--latency-ms` in the server, which shares the cores with the loader: its
processor time stands beside. `nginx` hands out what moto answered; `moto`, in Python, answers all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks/object_store.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = ("epochs", "pace", "training")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--server", choices=("nginx", "moto"), default="nginx")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--grid", type=int, default=128, help="of epochs and pace (128)")
    parser.add_argument("--training-grid", type=int, default=64, help="(64)")
    parser.add_argument("--cases", type=int, default=96, help="(96)")
    parser.add_argument("--batch", type=int, default=4, help="(4)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--msd-root", type=Path, help="folder with Task04_Hippocampus")
    options = parser.parse_args(argv)
    usual = ROOT.parent / "shared" / "data"
    if options.msd_root is None and (usual / "Task04_Hippocampus").is_dir():
        options.msd_root = usual
    return options


@contextlib.contextmanager
def _served(options: argparse.Namespace, store: Path, folder: Path) -> Iterator[object]:
    from benchmarks.object_path.front import Server, behind_nginx
    from benchmarks.object_path.material import upload
    from mvl_dist.store import connection
    from tests.object_server import object_server

    latency_s = options.latency_ms / 1000
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(object_server(0 if options.server == "nginx" else latency_s))
        upload(store, direct)
        server = Server("moto", direct.address, direct.pid, direct)
        if options.server == "nginx":
            server = stack.enter_context(behind_nginx(direct, latency_s, folder / "nginx"))
        os.environ.update(server.environment)
        connection.connect.cache_clear()
        yield server


def main(argv: Sequence[str]) -> int:
    """Measure and print."""
    options = _options(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker's parallelism is other workers
    # Stopped from outside, it leaves no server and no cache behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Not at the top: a worker process begins by importing this file, and needs none of it.
    from benchmarks.object_path import show
    from benchmarks.object_path.material import make_store

    print(show.about(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        rate_parts = [part for part in options.parts if part != "training"]
        for part, grid in (("rates", options.grid), ("training", options.training_grid)):
            if not (rate_parts if part == "rates" else "training" in options.parts):
                continue
            folder = Path(name) / part
            store = make_store(folder, grid, options.cases, options.msd_root, workers=2)
            with _served(options, store, folder) as server:
                if part == "rates":
                    show.rates(options, store, server)
                else:
                    show.trainings(options, store, server, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
