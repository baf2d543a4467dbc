"""How a label map becomes the masks of its regions: ways to do it, on one core, in turn.

    python -m benchmarks.region_masks [--grid 128]

The limit is writing the masks: R x voxels bytes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import torch

from mvl_dist.data import region_masks
from mvl_dist.tasks import Region

ROUNDS = 40
CASES = {
    "2 labels": [Region("anterior", (1,)), Region("posterior", (2,))],
    "3 labels merged": [Region("foreground", (1, 2, 3))],
    "3 labels, 2 unions": [
        *(Region(str(value), (value,)) for value in (1, 2, 3)),
        *(Region("whole", (1, 2, 3)), Region("core", (2, 3))),
    ],
}


def isin(label: torch.Tensor, regions: list[Region]) -> torch.Tensor:
    masks = [torch.isin(label, torch.tensor(r.labels, dtype=label.dtype)) for r in regions]
    return torch.stack(masks).to(torch.uint8)


def torch_equal(label: torch.Tensor, regions: list[Region]) -> torch.Tensor:
    masks = torch.zeros((len(regions), *label.shape), dtype=torch.bool)
    for mask, region in zip(masks, regions, strict=True):
        for value in region.labels:
            mask |= label == value
    return masks.view(torch.uint8)


def table(label: torch.Tensor, regions: list[Region]) -> torch.Tensor:
    tables = np.zeros((len(regions), 256), np.uint8)
    for row, region in zip(tables, regions, strict=True):
        row[list(region.labels)] = 1
    return torch.from_numpy(np.stack([np.take(row, label.numpy()) for row in tables]))


def limit(label: torch.Tensor, regions: list[Region]) -> torch.Tensor:
    return torch.ones((len(regions), *label.shape), dtype=torch.uint8)


WAYS: dict[str, Callable[[torch.Tensor, list[Region]], torch.Tensor]] = {
    "torch.isin": isin,
    "torch ==": torch_equal,
    "numpy table": table,
    "ours": region_masks,
    "limit: writing": limit,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grid", type=int, default=128)
    grid = parser.parse_args().grid
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {platform.machine()}, torch {torch.__version__}, numpy {np.__version__}"
    )
    values = np.random.default_rng(0).integers(0, 4, (grid,) * 3, dtype=np.uint8)
    label = torch.from_numpy(values)
    for name, regions in CASES.items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        expected = isin(label, regions)
        for _ in range(ROUNDS):
            for way, work in WAYS.items():
                started = time.perf_counter()
                masks = work(label, regions)
                times[way].append(time.perf_counter() - started)
                if way != "limit: writing" and not torch.equal(masks, expected):
                    raise SystemExit(f"{way} gives other masks")
        print(f"{grid}^3, {name}: ms (median), and median ratio to ours in the same round")
        for way, found in times.items():
            ratio = statistics.median(a / b for a, b in zip(found, times["ours"], strict=True))
            print(f"  {way:15} {statistics.median(found) * 1000:8.2f} {ratio:8.2f}")


if __name__ == "__main__":
    main()
