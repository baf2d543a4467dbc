"""What is measured on, for how long, and how fast it multiplies matrices."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

WARM_UPS, REPEATS_AT_LEAST, REPEATS_AT_MOST = 3, 3, 30


@dataclass
class Budget:
    """Seconds that all measurements together may take; what did not fit is remembered."""

    seconds: float
    started: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    def allows(self, what: str, seconds: float) -> bool:
        """Whether there is time for something that takes about so long."""
        if self.used() + seconds <= self.seconds:
            return True
        self.left_out.append(what)
        return False

    def used(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.started


@dataclass(frozen=True)
class Measured:
    """Median time of a call, and the most memory that was in use during one (0: not measured)."""

    ms: float
    peak_gib: float


def measure(
    calls: dict[str, Callable[[], Any]], device: torch.device, seconds: float
) -> dict[str, Measured]:
    """Time calls after warm-up, in turns, for about so many seconds each.

    In turns, because a CPU shared with others is now fast and now slow; the peak of memory is that
    of all together, so that a GPU's are to be measured one by one.
    """
    took = {name: [_ms(call, device) for _ in range(WARM_UPS)][-1] for name, call in calls.items()}
    repeats = int(1000 * seconds / max(*took.values(), 1e-3))
    repeats = min(max(repeats, REPEATS_AT_LEAST), REPEATS_AT_MOST)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(_ms(call, device))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else 0.0
    return {name: Measured(statistics.median(found), peak) for name, found in times.items()}


def _ms(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def matmul_tflops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of one product of two square matrices of random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / measure({"matmul": lambda: a @ b}, device, 2.0)["matmul"].ms / 1e9


def about(device: torch.device) -> dict[str, str]:
    """Device and versions."""
    packages = ("triton", "transformers", "peft", "liger-kernel")
    found = {name: _version(name) for name in packages}
    return {
        "device": name_of(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **found,
    }


def name_of(device: torch.device) -> str:
    """The GPU's name, or the CPU's and how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
    return f"{model}, {torch.get_num_threads()} threads (a CPU, not a GPU)"


def slug(device: torch.device) -> str:
    """A short name for files: `h200`, `a100-sxm4-40gb`, `cpu`."""
    if device.type != "cuda":
        return "cpu"
    return name_of(device).lower().removeprefix("nvidia ").replace(" ", "-")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
