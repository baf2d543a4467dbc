"""Epochs out of one place: first ones through an empty cache, later ones through a full one."""

from __future__ import annotations

import atexit
import gc
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.data_path.source import TASK
from benchmarks.object_path.front import Server
from mvl_dist.cache_folder import SHARED_MEMORY, join, leave
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import CaseDataset, Item, RankBatches
from mvl_dist.loading import BatchLoader, timed
from mvl_dist.node_cache import NodeCache
from mvl_dist.place import StorePlace
from mvl_dist.store import Manifest, far_array

CACHE_BYTES = 8_000_000_000
# Epochs of one cache: a first one and later ones.
OF_A_CACHE = 1000


@dataclass(frozen=True)
class Taken:
    """What some epochs took.

    Attributes:
        waited_s: for all batches but the first.
        cpu_s: of the loader's processes, the consumer's copies among it.
        server_cpu_s: of the server's.
    """

    samples: int
    seconds: float
    waited_s: float
    cpu_s: float
    server_cpu_s: float
    requests: int

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds

    @property
    def waited(self) -> float:
        """Share of the time."""
        return self.waited_s / self.seconds


class _Order(RankBatches):
    """Some epochs in a row as one."""

    def go(self, epoch: int, passes: int) -> None:
        self.start, self.passes = epoch, passes

    def __len__(self) -> int:
        return self.passes * self.batches_per_epoch

    def __iter__(self) -> Iterator[list[Item]]:
        for epoch in range(self.start, self.start + self.passes):
            self.set_position(epoch)
            yield from super().__iter__()


class _Renewed(CaseDataset):
    """Begins anew every `OF_A_CACHE` epochs, as a training's processes do."""

    def __init__(
        self, place: StorePlace, manifest: Manifest, cases: Sequence[str], base: Path
    ) -> None:
        super().__init__(CaseReader(place, TASK), manifest, cases, "all")
        self.manifest, self.base, self.number = manifest, base, -1

    def ahead(self, items: Sequence[Item]) -> None:
        number = items[0].epoch // OF_A_CACHE
        if number != self.number:
            self.number = number
            far_array.forget()
            cache = NodeCache(self.base / str(number), CACHE_BYTES)
            self.reader = self.reader.through(cache, self.manifest)
        super().ahead(items)


class Way:
    """A place read by a loader whose processes are up."""

    def __init__(
        self, place: StorePlace, manifest: Manifest, batch: int, workers: int, server: Server
    ) -> None:
        self.server = server
        self.base = Path(tempfile.mkdtemp(prefix="mvl-bench-", dir=SHARED_MEMORY))
        atexit.register(shutil.rmtree, self.base, ignore_errors=True)  # stopped before `stop`
        cases = sorted(manifest.cases)
        self.order = _Order(len(cases) // batch * batch, batch, 0, 1, seed=0)
        dataset = _Renewed(place, manifest, cases, self.base)
        self.loader = BatchLoader(dataset, self.order, workers)
        self.batch, self.number, self.later = batch, 0, 0
        self.sink: dict[str, torch.Tensor] = {}
        self.first()

    def first(self, step_s: float = 0.0) -> Taken:
        """An epoch through an empty cache, read by whoever has read nothing yet."""
        leave(self.base / str(self.number))
        self.number, self.later = self.number + 1, 0
        join(self.base / str(self.number))
        return self._take(0, 1, step_s)

    def later_ones(self, passes: int) -> Taken:
        """So many more epochs."""
        self.later += passes
        return self._take(self.later - passes + 1, passes, 0.0)

    def stop(self) -> None:
        """End its processes and remove its caches."""
        del self.loader
        gc.collect()  # a loader's workers end with it
        leave(self.base / str(self.number))
        shutil.rmtree(self.base, ignore_errors=True)

    def _take(self, epoch: int, passes: int, step_s: float) -> Taken:
        self.order.go(self.number * OF_A_CACHE + epoch, passes)
        self.server.requests()
        server, own = self.server.cpu_s(), self._cpu_s()
        waits: list[float] = []
        started = time.perf_counter()
        for batch, wait_ms in timed(self.loader):
            begun = time.perf_counter()
            waits.append(wait_ms / 1000)
            self._copy(batch)
            if step_s:
                time.sleep(max(0.0, step_s - (time.perf_counter() - begun)))
        seconds = time.perf_counter() - started
        return Taken(
            samples=len(waits) * self.batch,
            seconds=seconds,
            waited_s=sum(waits[1:]),
            cpu_s=self._cpu_s() - own,
            server_cpu_s=self.server.cpu_s() - server,
            requests=self.server.requests(),
        )

    def _copy(self, batch: dict[str, Any]) -> None:
        """To where a device would have it: memory that nobody reads is too cheap."""
        for name in ("image", "label"):
            if name not in self.sink:
                self.sink[name] = torch.zeros_like(batch[name])
            self.sink[name].copy_(batch[name])

    def _cpu_s(self) -> float:
        servers = {p.pid for p in self.server.processes()} | {self.server.direct.pid}
        own = psutil.Process()
        times = [
            process.cpu_times()
            for process in (own, *own.children(recursive=True))
            if process.pid not in servers
        ]
        return sum(each.user + each.system for each in times)
