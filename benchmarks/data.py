"""How fast do samples come, by our store and by others', and how far is the machine's limit?

    python -m benchmarks.data [--quick] [--json FILE] [--msd-root DIR] [--work DIR]

Competitors keep the same arrays each in its own way and deliver the same samples through the same
loader; that they are equal is checked before anything is timed. They take turns within a round,
and ratios are taken within a round. A full run takes a quarter of an hour at most: a round that no
time is left for is not begun. JSON and table (.txt) lie side by side in benchmarks/results/, and
are written after each round. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SECONDS = 840.0
HIPPOCAMPUS = "Task04_Hippocampus"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks/data.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--json", type=Path, help="the result (benchmarks/results/data-DATE.json)")
    parser.add_argument(
        "--msd-root", type=Path, help="folder with Task04_Hippocampus (../shared/data, or phantoms)"
    )
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure (a temporary)")
    parser.add_argument("--rounds", type=int, default=3, help="of all competitors (3)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"for all rounds ({SECONDS:.0f})"
    )
    parser.add_argument("--workers", type=int, nargs="+", help="loaders' (1 2; --quick: 0)")
    options = parser.parse_args(argv)
    options.workers = options.workers or ([0] if options.quick else [1, 2])
    if min(options.workers) < 0 or options.rounds < 1:
        parser.error("--workers must not be negative, and --rounds is at least 1")
    usual = ROOT.parent / "shared" / "data"
    if options.msd_root is None and not options.quick:
        options.msd_root = usual if (usual / HIPPOCAMPUS).is_dir() else None
    if options.msd_root and not (options.msd_root / HIPPOCAMPUS).is_dir():
        parser.error(f"--msd-root {options.msd_root}: holds no {HIPPOCAMPUS}")
    return options


def main(argv: Sequence[str]) -> int:
    """Measure, write, print."""
    options = _options(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker's parallelism is other workers
    # Not at the top: a worker process begins by importing this file, and needs none of it.
    from benchmarks.data_path.bench import Bench
    from benchmarks.data_path.rows import Result
    from benchmarks.data_path.show import table

    # Stopped from outside, it leaves no gigabytes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="mvl-bench-data-", dir=options.work))
    bench = Bench(options, folder)
    path = options.json or RESULTS / f"data-{bench.result.about['date']}.json"

    def save(result: Result) -> None:
        result.write(path)
        path.with_suffix(".txt").write_text(table(result) + "\n")

    try:
        result = bench.run(save)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    save(result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
