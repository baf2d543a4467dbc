"""How fast does the converter read, against plain gunzip of the same files, and what takes long?

From the repository's root: `python -m benchmarks.convert_speed [MSD_ROOT]`, ../shared/data if
none is given. Both sides get the same files, the same number of processes and a warm page cache;
they take turns within a round, and ratios are taken within a round.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gzip
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.convert import ConvertOptions, convert_task
from data_prep.nifti import read_scan, read_source
from data_prep.source import Pair, list_pairs
from mvl_dist.intensity import MRI_SCHEME, normalise
from mvl_dist.parallel import run_cases
from mvl_dist.resample import resample_image, resample_label
from mvl_dist.store import CaseArrays, create_task_group, write_case
from mvl_dist.tasks import Task, load_task

ROUNDS = 3
WORKERS = 2
GRIDS = ((128, 128, 128), (64, 64, 64))


def gunzip(pair: Pair) -> tuple[int, int]:
    """Bytes before and after decompression of a case's two files."""
    sizes = [0, 0]
    for path in (pair.image, pair.label):
        data = path.read_bytes()
        sizes[0] += len(data)
        sizes[1] += len(gzip.decompress(data))
    return sizes[0], sizes[1]


def nothing(pair: Pair) -> None:
    """What is left is the start of the processes and their imports."""


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(folder: Path, pairs: list[Pair], grid: tuple[int, int, int]) -> str:
    """One line: seconds of both sides and their ratio, medians over the rounds."""
    rows, starts = [], []
    compressed, raw = (sum(column) for column in zip(*map(gunzip, pairs), strict=True))
    for _ in range(ROUNDS):
        starts.append(timed(lambda: list(run_cases(nothing, pairs, WORKERS, "start"))))
        plain = timed(lambda: list(run_cases(gunzip, pairs, WORKERS, "gunzip")))
        with tempfile.TemporaryDirectory() as store:
            options = ConvertOptions(folder.parent, Path(store) / "s", grid=grid, workers=WORKERS)
            rows.append((plain, timed(lambda o=options: convert_task(folder, o))))
    plain, ours = (statistics.median(column) for column in zip(*rows, strict=True))
    ratios = sorted(ours / plain for plain, ours in rows)
    return (
        f"{grid[0]}^3: gunzip {plain:.2f} s ({compressed / plain / 1e6:.1f} MB/s compressed, "
        f"{raw / plain / 1e6:.1f} MB/s raw); convert {ours:.2f} s "
        f"({compressed / ours / 1e6:.1f} compressed, {raw / ours / 1e6:.1f} raw); "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
        f"of each, starting the processes {statistics.median(starts):.2f} s"
    )


def stages(pairs: list[Pair], task: Task, grid: tuple[int, int, int]) -> str:
    """One line: milliseconds a case and stage, in this process."""
    total = dict.fromkeys(("read+gunzip", "check+orient", "normalise", "resample", "write"), 0.0)
    with tempfile.TemporaryDirectory() as store:
        create_task_group(Path(store), task.name)
        for pair in pairs:
            marks = [time.perf_counter()]
            for path in (pair.image, pair.label):
                gzip.decompress(read_source(path, pair.root)[1])
            marks.append(time.perf_counter())
            scan = read_scan(pair, task)
            marks.append(time.perf_counter())
            image = normalise(scan.image, MRI_SCHEME)
            marks.append(time.perf_counter())
            arrays = CaseArrays(
                resample_image(image, grid).astype(np.float16),
                resample_label(scan.label, grid),
                scan.label,
            )
            marks.append(time.perf_counter())
            write_case(Path(store), task.name, pair.name, arrays, {})
            marks.append(time.perf_counter())
            for stage, start, end in zip(total, marks[:-1], marks[1:], strict=True):
                total[stage] += end - start
    # read_scan reads and decompresses too; what is left of it is the checking.
    total["check+orient"] -= total["read+gunzip"]
    whole = sum(total.values())
    parts = (
        f"{stage} {seconds / len(pairs) * 1e3:.1f} ms ({seconds / whole:.0%})"
        for stage, seconds in total.items()
    )
    return f"{grid[0]}^3, one process, a case: {', '.join(parts)}"


def large_scan() -> str:
    """A brain tumour case of the real size."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, 155, 240, 240), dtype=np.float32)
    label = np.zeros(image.shape[1:], np.uint8)
    label[50:100, 80:150, 90:160] = 1
    label[60:90, 90:140, 100:150] = 2
    label[70:80, 100:130, 110:140] = 3
    shape = (128, 128, 128)
    times = [
        (timed(lambda: resample_image(image, shape)), timed(lambda: resample_label(label, shape)))
        for _ in range(ROUNDS)
    ]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    return f"4 x 240x240x155 to 128^3: image {seconds[0]:.2f} s, label {seconds[1]:.2f} s"


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data").resolve()
    folder = root / "Task04_Hippocampus"
    task, dataset = load_task(folder)
    pairs = list_pairs(folder, dataset)
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("numpy", "scipy", "nibabel", "zarr")
    )
    print(f"{platform.platform()}, {os.cpu_count()} cores, {WORKERS} processes, {ROUNDS} rounds")
    print(f"Python {platform.python_version()}, {versions}; {len(pairs)} cases of {task.name}")
    print(f"load average {os.getloadavg()[0]:.1f} at the start")
    for grid in GRIDS:
        print(compare(folder, pairs, grid), flush=True)
        print(stages(pairs, task, grid), flush=True)
    print(large_scan())


if __name__ == "__main__":
    main()
