"""What augmentation costs a batch, in time and in memory: our presets, and MONAI's transforms.

    python -m benchmarks.augmentation [--batch 4] [--grid 128] [--rounds 10]

A batch is of MRI samples of two channels with two regions. On a CPU the time is that of one core.
MONAI's row is the same set, with the same probabilities, as its dictionary transforms do it: sample
after sample, image and label each resampled for the affine map.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from monai import transforms as m
from torch import Tensor

from mvl_dist.augment import PRESETS, Anatomy

CHANNELS, REGIONS = 2, 2
ANATOMY = Anatomy((1.0, 1.0, 1.0), (2,), keeps_background=True)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Way = Callable[[Tensor, Tensor, int], object]


def ours(name: str) -> Way:
    def augment(image: Tensor, target: Tensor, turn: int) -> object:
        seeds = [(0, turn, place) for place in range(len(image))]
        return PRESETS[name](image, target, seeds, ANATOMY)

    return augment


def strong_apart(image: Tensor, target: Tensor, turn: int) -> object:
    """The same samples, each as a batch of its own: what a batch at once is worth."""
    return [
        PRESETS["strong"](image[one : one + 1], target[one : one + 1], [(0, turn, one)], ANATOMY)
        for one in range(len(image))
    ]


def monai_set() -> Way:
    image, both = ["image"], ["image", "target"]
    turn = math.radians(30)
    compose = m.Compose(
        [
            m.RandAffined(
                both,
                prob=0.36,
                rotate_range=(turn,) * 3,
                scale_range=(0.4, 0.4, 0.4),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            m.RandGaussianNoised(image, prob=0.1, std=0.1),
            m.RandGaussianSmoothd(image, (0.5, 1), (0.5, 1), (0.5, 1), prob=0.2),
            m.RandScaleIntensityd(image, 0.25, prob=0.15),
            m.RandAdjustContrastd(image, prob=0.15, gamma=(0.75, 1.25)),
            m.RandSimulateLowResolutiond(image, prob=0.25, zoom_range=(0.5, 1.0)),
            m.RandAdjustContrastd(image, 0.1, (0.7, 1.5), invert_image=True, retain_stats=True),
            m.RandAdjustContrastd(image, 0.3, (0.7, 1.5), retain_stats=True),
            m.RandFlipd(both, prob=0.5, spatial_axis=2),
        ]
    )

    def augment(image: Tensor, target: Tensor, turn: int) -> object:
        compose.set_random_state(turn)
        pairs = zip(image.float(), target.float(), strict=True)
        done = [compose({"image": one, "target": mask}) for one, mask in pairs]
        return [torch.stack([sample[key].as_tensor() for sample in done]) for key in both]

    return augment


WAYS = {
    "paper": ours("paper"),
    "strong": ours("strong"),
    "strong, one by one": strong_apart,
    "MONAI, the same set": monai_set(),
}


def batch(size: int, grid: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    image = torch.randn(size, CHANNELS, grid, grid, grid).half()
    return image.to(DEVICE), (image[:, :REGIONS] > 1).to(torch.uint8).to(DEVICE)


def seconds(work: Callable[[], object]) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return time.process_time() - started


def peak_mb(work: Callable[[], object]) -> float:
    """Memory that the work takes beyond what is there before it."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what another way left would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = _resident_kb("VmRSS")
    work()
    return (_resident_kb("VmHWM") - before) / 1e3


def _resident_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--grid", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine()
    print(f"{date.today()}, {device}, torch {torch.__version__}")
    image, target = batch(options.batch, options.grid)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, list[float]] = {name: [] for name in WAYS}
    for way in WAYS.values():  # a device's first call loads its kernels
        way(image, target, options.rounds)
    for turn in range(options.rounds):
        for name, way in WAYS.items():
            times[name].append(seconds(functools.partial(way, image, target, turn)))
    for turn in range(options.rounds):  # apart, as it gives memory back that the times would need
        for name, way in WAYS.items():
            peaks[name].append(peak_mb(functools.partial(way, image, target, turn)))
    size = image.float().nbytes / 1e6
    print(f"{options.batch} x {CHANNELS} x {options.grid}^3 ({size:.0f} MB in float32), a batch:")
    for name, found in times.items():
        ratio = statistics.mean(found) / statistics.mean(times["strong"])
        print(
            f"  {name:20} {statistics.mean(found) * 1000:8.0f} ms mean "
            f"{max(found) * 1000:8.0f} ms worst {ratio:6.2f} of strong "
            f"{max(peaks[name]):8.0f} MB peak"
        )


if __name__ == "__main__":
    main()
