"""Runs the parts of benchmarks/object_store.py in turns, and prints what came out."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import obstore

from benchmarks.data_path.source import TASK
from benchmarks.object_path.epochs import Taken, Way
from benchmarks.object_path.front import Server
from benchmarks.object_path.material import BUCKET, sample_bytes
from benchmarks.object_path.training import Waits, train
from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import Manifest, read_manifest
from mvl_dist.store.connection import connect

PASSES = 4
# Of the rate of a first epoch from a folder.
PACES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
# To be handed a batch that is there already takes 1 to 2 ms.
KEEPS_UP = 0.05
FOLDER, S3 = "folder", "s3"
FAR = RemotePlace(f"s3://{BUCKET}")


def about() -> str:
    """Machine and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
    return (
        f"{date.today()}, {model}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}, python {platform.python_version()}, obstore "
        f"{obstore.__version__}"
    )


def _places(store: Path) -> dict[str, StorePlace]:
    return {FOLDER: store, S3: FAR}


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def rates(options: argparse.Namespace, store: Path, server: Server) -> None:
    """What the server gives by itself, epochs, and consumers of a pace."""
    manifest = read_manifest(store, TASK)
    size = sample_bytes(store, manifest)
    print(
        f"{len(manifest.cases)} cases of {options.grid}^3, {size / 1e6:.2f} MB each; "
        f"{server.name}, {options.latency_ms:g} ms a request; batches of {options.batch}"
    )
    _server_alone(server, manifest)
    for workers in options.workers:
        ways = {
            name: Way(place, manifest, options.batch, workers, server)
            for name, place in _places(store).items()
        }
        try:
            if "epochs" in options.parts:
                _epochs(ways, workers, options.rounds)
            if "pace" in options.parts and workers:  # without, all work is the consumer's
                _pace(ways, workers, options.batch)
        finally:
            for way in ways.values():
                way.stop()


def _server_alone(server: Server, manifest: Manifest) -> None:
    """A bare client, obstore without decoding, beside which the server has a core of its own."""
    keys = [f"{TASK}/cases/{case}/image/c/0/0/0/0" for case in sorted(manifest.cases)]

    async def all_of(at_once: int) -> int:
        connection, room = connect(FAR.root), asyncio.Semaphore(at_once)

        async def one(key: str) -> int:
            async with room:
                return len(await (await obstore.get_async(connection, key)).bytes_async())

        return sum(await asyncio.gather(*(one(key) for key in keys)))

    asyncio.run(all_of(4))  # from now on nginx has them
    for at_once in (1, 4, 16, 32):
        started, cpu_s, own = time.perf_counter(), server.cpu_s(), time.process_time()
        nbytes = asyncio.run(all_of(at_once))
        seconds = time.perf_counter() - started
        print(
            f"  the server alone, {at_once:2} requests at once: {len(keys) / seconds:5.0f} images/s"
            f", {nbytes / 1e6 / seconds:5.0f} MB/s; CPU ms an image: server "
            f"{1000 * (server.cpu_s() - cpu_s) / len(keys):.1f}, client "
            f"{1000 * (time.process_time() - own) / len(keys):.1f}",
            flush=True,
        )


def _epochs(ways: dict[str, Way], workers: int, rounds: int) -> None:
    kinds = ("first epoch", "later epochs")
    taken: dict[tuple[str, str], list[Taken]] = {(k, w): [] for k in kinds for w in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            taken[kinds[0], name].append(ways[name].first())
            taken[kinds[1], name].append(ways[name].later_ones(PASSES))
    print(f"{workers} workers; median of {rounds} rounds (lowest to highest):")
    for (kind, name), each in taken.items():
        of_folder = [t.rate / f.rate for t, f in zip(each, taken[kind, FOLDER], strict=True)]
        print(
            f"  {kind:12} {name:6} {_range([t.rate for t in each], '5.0f')} samples/s, "
            f"{_range(of_folder, '4.0%')} of a folder's; CPU ms a sample: loader "
            f"{_median([1000 * t.cpu_s / t.samples for t in each]):4.1f}, server "
            f"{_median([1000 * t.server_cpu_s / t.samples for t in each]):4.1f}; "
            f"{_median([t.requests / t.samples for t in each]):.1f} requests a sample",
            flush=True,
        )


def _range(values: Sequence[float], form: str) -> str:
    return f"{_median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _pace(ways: dict[str, Way], workers: int, batch: int) -> None:
    fastest = _median([ways[FOLDER].first().rate for _ in range(3)])
    print(
        f"{workers} workers, first epochs, a consumer that computes between batches; waits, of its "
        "time (median of 3):"
    )
    keeps_up = dict.fromkeys(ways, 0.0)
    for share in PACES:
        rate = share * fastest
        waited: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, way in ways.items():
                waited[name].append(way.first(step_s=batch / rate).waited)
        for name, each in waited.items():
            if _median(each) <= KEEPS_UP:
                keeps_up[name] = rate
        said = ", ".join(f"{name} {_range(each, '.1%')}" for name, each in waited.items())
        print(
            f"  {rate:4.0f} samples/s ({share:.0%} of the fastest from a folder): {said}",
            flush=True,
        )
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in keeps_up.items())
    print(f"  samples/s at which at most {KEEPS_UP:.0%} is waited: {said}")


def trainings(options: argparse.Namespace, store: Path, server: Server, folder: Path) -> None:
    """The project's own training out of both places."""
    grid = [str(options.training_grid)] * 3
    manifest = read_manifest(store, TASK)
    size = sample_bytes(store, manifest)
    for workers in options.workers:
        arguments = [
            *("--preset", "smoke", "--model", "vit_baseline", "--task", "97", "--grid", *grid),
            *("--patch", "16", "16", "16", "--workers", str(workers)),
        ]
        waits: dict[str, list[list[Waits]]] = {FOLDER: [], S3: []}
        for number in range(options.rounds):
            for name, place in _places(store).items():
                output = folder / f"runs-{workers}-{number}-{name}"
                environment = server.environment
                waits[name].append(train(place, output, options.batch, arguments, **environment))
        print(
            f"accelerate launch mvl_dist/train.py, one CPU rank, {len(manifest.cases)} cases of "
            f"{options.training_grid}^3 ({size / 1e6:.2f} MB), batches of {options.batch}, "
            f"{workers} workers, {server.name}, {options.latency_ms:g} ms a request; median of "
            f"{options.rounds} runs:"
        )
        for epoch, title in ((0, "first epoch"), (1, "second epoch")):
            for name, each in waits.items():
                epochs = [run[epoch] for run in each]
                print(
                    f"  {title:12} {name:6} waits {_range([e.share for e in epochs], '.1%')} of the"
                    f" time, {_median([e.step_ms for e in epochs]):.1f} ms a step, after the first:"
                    f" {_median([e.first_ms for e in epochs]):.0f} ms; a sample takes "
                    f"{_median([e.sample_ms for e in epochs]):.0f} ms",
                    flush=True,
                )
