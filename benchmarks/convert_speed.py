"""Do conversion and verification keep up with plain gunzip and sha256sum of the same files?

    python -m benchmarks.convert_speed [--quick] [--data DIR] [--scratch DIR] [--json FILE]

Tasks: Task04_Hippocampus of --data if it is there, and drawn ones of real sizes (benchmarks/
msd_sizes.py), which are made once below --scratch. Both sides get the same files, two processes
(one to verify) and, but where it says cold, a warm page cache; they take turns within a round. A
ratio is of the bytes that gunzip writes, a second: 0.5 is half of gunzip's rate. It is given by the
clock and by CPU time (with all children), which other work on the machine disturbs less.

Where torch sees a GPU, each round has a conversion with --resample-on cuda too, and its manifest is
compared with the CPU's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import io
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from benchmarks.data_path.disk import forget
from benchmarks.msd_sizes import BRAIN, CT, LARGEST_CT, write_task
from data_prep.convert import ConvertOptions, convert_task
from data_prep.source import Pair, list_pairs
from data_prep.verify import verify_task
from mvl_dist.parallel import run_cases
from mvl_dist.store import read_manifest
from mvl_dist.tasks import load_task

WORKERS = 2
GRID = (128, 128, 128)


@dataclass(frozen=True)
class Spent:
    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Spent:
    """Clock and CPU seconds of a call, its finished child processes included."""

    def cpu() -> float:
        return sum(
            resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )

    wall, before = time.perf_counter(), cpu()
    with contextlib.redirect_stderr(io.StringIO()):  # progress lines
        work()
    return Spent(time.perf_counter() - wall, cpu() - before)


def nothing(pair: Pair) -> None:
    """What is left is the start of the processes and their imports."""


def files(pairs: list[Pair]) -> list[Path]:
    return [path for pair in pairs for path in (pair.image, pair.label)]


def zlib_gunzip(pair: Pair) -> tuple[int, Spent]:
    """Gunzip a case by zlib into memory of the right size: bytes written, what it took."""
    total, wall, cpu = 0, time.perf_counter(), time.process_time()
    for path in (pair.image, pair.label):
        data = path.read_bytes()
        total += len(zlib.decompress(data, 31, int.from_bytes(data[-4:], "little")))
    return total, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def zlib_in_workers(pairs: list[Pair]) -> tuple[int, Spent]:
    """All cases in two processes, without the start of these."""
    with contextlib.redirect_stderr(io.StringIO()):
        done = list(run_cases(zlib_gunzip, pairs, WORKERS, "gunzip"))
    wall = sum(spent.wall for _, spent in done) / WORKERS
    return sum(size for size, _ in done), Spent(wall, sum(spent.cpu for _, spent in done))


def each(command: str, paths: list[Path], processes: int = WORKERS) -> None:
    """Run a command on each file, or on all of them in one process; its output is thrown away."""
    lines = "\0".join(map(str, paths))
    run = ["xargs", "-0", f"-P{processes}", *(["-n1"] if processes > 1 else []), *command.split()]
    subprocess.run(run, input=lines, text=True, check=True, stdout=subprocess.DEVNULL)


def convert(folder: Path, store: Path, on: Literal["cpu", "cuda"] = "cpu") -> None:
    shutil.rmtree(store, ignore_errors=True)
    options = ConvertOptions(folder.parent, store, grid=GRID, workers=WORKERS, resample_on=on)
    convert_task(folder, options)


def torch_sees_a_gpu() -> bool:
    import torch  # not at the top, which every process of a conversion imports

    return torch.cuda.is_available()


def peak_gb(folder: Path, store: Path) -> float:
    """The largest worker's resident memory during a conversion in a process of its own."""
    script = (
        "import resource, sys; from pathlib import Path; from benchmarks import convert_speed as b;"
        "b.convert(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", script, str(folder), str(store)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(out.stdout.split()[-1]) * 1024 / 1e9


def compare(folder: Path, scratch: Path, rounds: int) -> dict[str, float]:
    """Print what a task's conversion and verification take; returns the ratios."""
    store = scratch / "store"
    pairs = list_pairs(folder, load_task(folder)[1])
    raw = zlib_in_workers(pairs)[0]
    rows: list[dict[str, Spent]] = []
    on_gpu: dict[str, Spent] = {}
    manifest = None
    for _ in range(rounds):
        if torch_sees_a_gpu():
            on_gpu = {"convert, cuda": timed(lambda: convert(folder, store, "cuda"))}
            manifest = read_manifest(store, folder.name)
        row = on_gpu | {
            "start": timed(lambda: list(run_cases(nothing, pairs, WORKERS, "start"))),
            "zlib": zlib_in_workers(pairs)[1],
            "gunzip -c": timed(lambda: each("gunzip -c", files(pairs))),
            "convert": timed(lambda: convert(folder, store)),
        }
        stored = [path for path in store.rglob("*") if path.is_file()]
        # In one process, which starts no others.
        row["sha256sum"] = timed(lambda s=stored: each("sha256sum", s, 1))
        row["verify"] = timed(lambda: verify_task(store, folder.name, 1))
        row["verify --decode"] = timed(lambda: verify_task(store, folder.name, 1, decode=True))
        forget(stored, everything=False)
        row["cat, cold"] = timed(lambda s=stored: each("cat", s, 1))
        forget(stored, everything=False)
        row["verify, cold"] = timed(lambda: verify_task(store, folder.name, 1))
        rows.append(row)

    def middle(what: str, clock: str) -> float:
        return statistics.median(getattr(row[what], clock) for row in rows)

    def ratio(base: str, ours: str, clock: str) -> float:
        """Base's time over ours, without the start of our processes, which no data lengthens."""
        return statistics.median(
            getattr(row[base], clock) / (getattr(row[ours], clock) - getattr(row["start"], clock))
            for row in rows
        )

    size = sum(path.stat().st_size for path in stored)
    with contextlib.redirect_stderr(io.StringIO()):
        arrays = verify_task(store, folder.name, 1, decode=True).decoded
    print(f"\n{folder.name}: {len(pairs)} cases, {raw / 1e6:.0f} MB gunzipped, ", end="")
    print(f"{size / 1e6:.0f} MB stored ({arrays / 1e6:.0f} MB of arrays)")
    for what in rows[0]:
        print(f"  {what:15s} {middle(what, 'wall'):7.2f} s, {middle(what, 'cpu'):7.2f} s of CPU")
    ratios = {
        f"convert_vs_{name}_{clock}": ratio(base, "convert", clock)
        for name, base in (("zlib", "zlib"), ("gunzip", "gunzip -c"))
        for clock in ("wall", "cpu")
    }
    if on_gpu:  # whole times: its processes start torch and CUDA as well
        for clock in ("wall", "cpu"):
            ratios[f"convert_cuda_vs_cpu_{clock}"] = statistics.median(
                getattr(row["convert"], clock) / getattr(row["convert, cuda"], clock)
                for row in rows
            )
        ratios["cuda_gave_the_same_arrays"] = float(read_manifest(store, folder.name) == manifest)
    for what in ("sha256sum", "verify", "cat, cold", "verify, cold"):
        ratios[f"{what.replace(', ', '_')}_mb_s"] = size / 1e6 / middle(what, "wall")
    ratios["decoding_arrays_mb_s"] = arrays / 1e6 / middle("verify --decode", "wall")
    ratios["peak_gb_a_worker"] = peak_gb(folder, store)
    for name, value in ratios.items():
        print(f"  {name} {value:.2f}")
    shutil.rmtree(store)
    sys.stdout.flush()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, no largest CT")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scratch", type=Path, default=Path("convert_speed_scratch"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scratch = arguments.scratch.resolve()
    versions = ", ".join(f"{n} {version(n)}" for n in ("numpy", "scipy", "isal", "zarr"))
    print(f"{platform.platform()}, {os.cpu_count()} cores, {WORKERS} processes; Python", end=" ")
    print(f"{platform.python_version()}, {versions}; load average {os.getloadavg()[0]:.1f}")
    folders = [write_task(scratch, task) for task in (CT, BRAIN)]
    real = arguments.data.resolve() / "Task04_Hippocampus"
    folders += [real] if real.is_dir() else []
    results = {f.name: compare(f, scratch, 1 if arguments.quick else 3) for f in folders}
    if not arguments.quick:
        largest = write_task(scratch, LARGEST_CT)
        gigabytes = peak_gb(largest, scratch / "store")
        print(f"\n512 x 512 x 700 CT: {gigabytes:.2f} GB a worker at most")
        results[largest.name] = {"peak_gb_a_worker": gigabytes}
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": results}, indent=1))


if __name__ == "__main__":
    main()
