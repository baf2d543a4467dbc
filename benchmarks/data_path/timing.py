"""Time, processor time and disk bytes of a process and its children, and the machine's limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

PACKAGES = ("torch", "numpy", "scipy", "nibabel", "monai", "zarr", "numcodecs")
PEERS = ("blosc2", "tensorstore", "webdataset")


@dataclass(frozen=True)
class Used:
    """What so many samples took; `disk_bytes` did not come from the page cache."""

    samples: int
    seconds: float
    cpu_s: float
    disk_bytes: int

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time a sample, user and system, of all processes."""
        return 1000 * self.cpu_s / self.samples

    @property
    def disk_mb(self) -> float:
        """Read from the disk a sample."""
        return self.disk_bytes / 1e6 / self.samples

    def and_before(self, seconds: float, cpu_s: float, disk_bytes: int) -> Used:
        """The same with what had to happen before."""
        return Used(
            self.samples,
            self.seconds + seconds,
            self.cpu_s + cpu_s,
            self.disk_bytes + disk_bytes,
        )


class Watch:
    """Counts from now on, for this process and the children that it has."""

    def __init__(self) -> None:
        self.cpu_s, self.disk_bytes = _spent()
        self.started = time.perf_counter()

    def so_far(self) -> tuple[float, float, int]:
        """Seconds, processor seconds, bytes from the disk."""
        seconds = time.perf_counter() - self.started
        cpu_s, disk_bytes = _spent()
        return seconds, cpu_s - self.cpu_s, disk_bytes - self.disk_bytes


def _spent() -> tuple[float, int]:
    cpu_s, disk_bytes = 0.0, 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu_s += times.user + times.system
            disk_bytes += process.io_counters().read_bytes
    return cpu_s, disk_bytes


class Sink:
    """Where batches go: copied into one buffer, as they are to a device.

    Without that, a loader that hands out memory which nobody has read yet would win.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}

    def take(self, batches: Iterable[dict[str, Any]]) -> Used:
        """Take batches to their end."""
        samples, watch = 0, Watch()
        for batch in batches:
            for name in ("image", "label"):
                values = batch[name]
                if name not in self.buffers:
                    self.buffers[name] = torch.zeros_like(values)
                self.buffers[name][: len(values)].copy_(values)
            samples += len(batch["case"])
        return Used(samples, *watch.so_far())


def memcpy_gb_per_s(nbytes: int) -> float:
    """GB/s at which one core copies a sample into memory that was used before; median of 20."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        target[...] = source
        times.append(time.perf_counter() - started)
    return nbytes / 1e9 / statistics.median(times)


def about() -> dict[str, str]:
    """Machine and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
    return {
        "date": date.today().isoformat(),
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in (*PACKAGES, *PEERS)},
    }
