"""How fast a store in an object store some way off comes as batches, beside the same in a folder.

    python -m benchmarks.object_store [--grid 128] [--latency-ms 20] [--workers 2]

Both are read by the same loader, in turn, each time with fresh loader processes whose start does
not count. No array is cached, so every sample is that of a first epoch. `one by one` is what reads
would cost without looking ahead. The server (moto's S3, in Python) shares the cores with the
loader.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import obstore
import zarr
from torch.utils.data import Dataset

from data_prep.convert import ConvertOptions, convert_task
from data_prep.phantom import PHANTOM_TASKS, make_phantom_task
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import Batch, CaseDataset, Item, RankBatches
from mvl_dist.loading import BatchLoader
from mvl_dist.place import RemotePlace
from mvl_dist.store import read_manifest
from mvl_dist.store.connection import connect
from mvl_dist.store.objects import AT_ONCE
from tests.object_server import object_server

TASK = PHANTOM_TASKS[0].name
CASES, BATCH, ROUNDS = 12, 4, 3
PASSES, PASSES_OF_START = 8, 2


class OneByOne(CaseDataset):
    """Asks for nothing early."""

    def ahead(self, items: object) -> None:
        return


def measured(dataset: CaseDataset, workers: int) -> float:
    """Samples a second of a fresh loader once its processes have started."""
    batches = iter(
        BatchLoader(_Repeated(dataset), RankBatches(CASES * PASSES, BATCH, 0, 1, seed=0), workers)
    )
    for _ in range(PASSES_OF_START * CASES // BATCH):
        next(batches)
    started, samples = time.perf_counter(), 0
    for batch in batches:
        samples += len(batch["case"])
    return samples / (time.perf_counter() - started)


async def limit(place: RemotePlace, keys: list[str]) -> float:
    """Requests a second of the server alone, `AT_ONCE` of them under way."""
    connection, room = connect(place.root), asyncio.Semaphore(AT_ONCE)

    async def one(key: str) -> None:
        async with room:
            await (await obstore.get_async(connection, key)).bytes_async()

    started = time.perf_counter()
    await asyncio.gather(*(one(key) for key in keys))
    return len(keys) / (time.perf_counter() - started)


class _Repeated(Dataset[Batch]):
    """The same cases over and over, so that they fill a measurement."""

    def __init__(self, dataset: CaseDataset) -> None:
        self.dataset = dataset
        self.layout = dataset.layout

    def ahead(self, items: Sequence[Item]) -> None:
        self.dataset.ahead([item._replace(case=item.case % CASES) for item in items])

    def __getitem__(self, item: Item) -> Batch:
        return self.dataset[item._replace(case=item.case % CASES)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grid", type=int, default=128)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print(
        f"{date.today()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}, zarr {zarr.__version__}, obstore {obstore.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        root, folder = Path(name) / "msd", Path(name) / "store"
        make_phantom_task(root, PHANTOM_TASKS[0], cases=CASES, seed=0)
        grid = (options.grid,) * 3
        convert_task(root / TASK, ConvertOptions(root, folder, grid=grid, workers=1))
        with object_server(options.latency_ms / 1000) as server:
            os.environ.update(server.environment)
            server.upload(folder / TASK, "bucket", f"{TASK}/", at_once=8)
            far = RemotePlace("s3://bucket")
            manifest = read_manifest(folder, TASK)
            cases = sorted(manifest.cases)
            size = sum(f.stat().st_size for f in folder.rglob("*/c/**/*") if f.is_file()) / CASES
            print(f"{CASES} cases at {options.grid}^3, {size / 1e6:.1f} MB each")
            ways = {
                "a folder": CaseDataset(CaseReader(folder, TASK), manifest, cases, "all"),
                "s3": CaseDataset(CaseReader(far, TASK), manifest, cases, "all"),
                "s3, one by one": OneByOne(CaseReader(far, TASK), manifest, cases, "all"),
            }
            chunks = [f"{TASK}/cases/{case}/image/c/0/0/0/0" for case in cases] * PASSES
            most = asyncio.run(limit(far, chunks))
            print(f"the server alone: {most:.0f} images/s")
            for workers in options.workers:
                rates: dict[str, list[float]] = {way: [] for way in ways}
                requests: dict[str, float] = {}
                for _ in range(ROUNDS):
                    for way, dataset in ways.items():
                        server.taken()
                        rates[way].append(measured(dataset, workers))
                        requests[way] = len(server.taken()[0]) / (CASES * PASSES)
                print(f"{workers} workers, {options.latency_ms:g} ms a request:")
                best = statistics.median(rates["a folder"])
                for way, each in rates.items():
                    rate = statistics.median(each)
                    print(
                        f"  {way:15} {rate:6.1f} samples/s ({rate / best:4.0%} of a folder's), "
                        f"{requests[way]:.1f} requests a sample"
                    )


if __name__ == "__main__":
    main()
