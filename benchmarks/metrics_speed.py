"""How long do surface metrics take here, in surface-distance and in MONAI?

From the repository's root: `python -m benchmarks.metrics_speed`. All implementations see the same
masks, one after the other in every round, one thread each; ratios are taken within a round.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mvl_dist.metrics import case_metrics
from tests.oracles import Mask, monai_nsd, random_blob, surface_distance_metrics

ROUNDS = 9
TOLERANCE_MM = 1.13
SPACING_MM = (1.0, 1.0, 1.0)
Implementation = Callable[[Mask, Mask], dict[str, float]]

IMPLEMENTATIONS: dict[str, Implementation] = {
    "case_metrics (all seven)": lambda p, r: case_metrics(p, r, SPACING_MM, TOLERANCE_MM),
    "surface-distance (NSD, HD95, HD100)": lambda p, r: surface_distance_metrics(
        p, r, SPACING_MM, TOLERANCE_MM
    ),
    "MONAI subvoxels (NSD)": lambda p, r: {"nsd": monai_nsd(p, r, SPACING_MM, TOLERANCE_MM)},
}


def ellipsoid(shape: tuple[int, int, int], radius: float) -> Mask:
    """Fills about `radius` of each half axis; its surface is wavy, as a drawn organ's is."""
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    d, h, w = grids
    waves = 0.08 * np.sin(7 * d + 1) * np.sin(6 * h) * np.sin(8 * w + 2)
    return np.sqrt(d**2 + h**2 + w**2) < radius + waves


def mask_pairs() -> dict[str, tuple[Mask, Mask]]:
    small, large = (36, 50, 35), (128, 128, 128)
    noise = np.random.default_rng(0).random(large) < 0.01
    organ = ellipsoid(large, 0.5)
    return {
        "36x50x35, organ": (np.roll(ellipsoid(small, 0.5), 1, axis=0), ellipsoid(small, 0.48)),
        "128^3, organ": (np.roll(organ, 2, axis=0), ellipsoid(large, 0.48)),
        "128^3, many blobs": (random_blob(large, 1, 8.0), random_blob(large, 1, 8.0, 0.115)),
        "128^3, organ + 1 % noise": (organ ^ noise, organ),
    }


def seconds(implementation: Implementation, pair: tuple[Mask, Mask]) -> float:
    start = time.perf_counter()
    implementation(*pair)
    return time.perf_counter() - start


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "?")


def main() -> None:
    import torch

    torch.set_num_threads(1)
    packages = ("numpy", "scipy", "torch", "monai", "surface-distance")
    print("Surface metrics: ms per mask pair, one thread")
    print(f"machine   {cpu_name()}, {os.cpu_count()} cores (shared), {platform.system()}")
    print(
        f"versions  Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    print(f"rounds    {ROUNDS}; spacing {SPACING_MM} mm, NSD tolerance {TOLERANCE_MM} mm")
    print("ratio     time / case_metrics of the same round: median (smallest to largest)")
    for name, pair in mask_pairs().items():
        print(f"\n{name}: {pair[0].sum()} and {pair[1].sum()} voxels")
        print(f"  {'':36}{'best':>8}{'median':>8}  {'ratio':20}{'NSD':>11}{'HD95':>9}{'HD100':>9}")
        values = {label: run(*pair) for label, run in IMPLEMENTATIONS.items()}  # also warms up
        times: dict[str, list[float]] = {label: [] for label in IMPLEMENTATIONS}
        for _ in range(ROUNDS):
            for label, run in IMPLEMENTATIONS.items():
                times[label].append(seconds(run, pair))
        ours = next(iter(times.values()))
        for label, taken in times.items():
            ratios = [theirs / our for theirs, our in zip(taken, ours, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            shown = "".join(
                f"{values[label][key]:{width}}" if key in values[label] else ""
                for key, width in (("nsd", "11.7f"), ("hd95_mm", "9.4f"), ("hd100_mm", "9.4f"))
            )
            best, median = min(taken) * 1e3, statistics.median(taken) * 1e3
            print(f"  {label:36}{best:8.1f}{median:8.1f}  {ratio:20}{shown}")


if __name__ == "__main__":
    main()
