"""How long do all metrics of one mask pair take here, and in what a user could pick instead?

From the repository's root: `python -m benchmarks.metrics_speed [--rounds N] [--large-rounds N]`.
All implementations see the same masks, one after the other in every round, in an order that is
drawn anew; ratios are taken within a round. The hippocampus is the first real label of Task04 in
$MVL_MSD_ROOT (default ../shared/data), against itself moved by a voxel and with voxels flipped at
its border.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import ndimage

from mvl_dist.metrics import case_metrics
from tests.oracles import Mask, monai_nsd, random_blob, surface_distance_metrics

MSD_ROOT = Path(os.environ.get("MVL_MSD_ROOT", Path(__file__).parents[2] / "shared" / "data"))
Spacing = tuple[float, float, float]
Values = dict[str, float]
Implementation = Callable[[Mask, Mask, Spacing, float], Values]
SHOWN = {"dice": "9.6f", "nsd": "11.7f", "hd95_mm": "9.4f", "hd100_mm": "9.4f"}


def monai_all_six(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float
) -> Values:
    """Dice, Jaccard, NSD with surfels, HD95, sensitivity, specificity with MONAI's functions."""
    import torch
    from monai.metrics import (
        compute_confusion_matrix_metric,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
        get_confusion_matrix,
    )

    p, r = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        confusion = get_confusion_matrix(p, r)
        compute_confusion_matrix_metric("sensitivity", confusion)
        compute_confusion_matrix_metric("specificity", confusion)
        compute_iou(p, r)
        return {
            "dice": float(compute_dice(p, r)),
            "nsd": monai_nsd(prediction, reference, spacing_mm, tolerance_mm),
            "hd95_mm": float(
                compute_hausdorff_distance(p, r, percentile=95, spacing=list(spacing_mm))
            ),
        }


def surface_distance_all(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float
) -> Values:
    """NSD, HD95 and HD100 with DeepMind's package; Dice with its function too."""
    from tests.oracles import surface_distance_package

    surface = surface_distance_metrics(prediction, reference, spacing_mm, tolerance_mm)
    dice = surface_distance_package().compute_dice_coefficient(reference, prediction)
    return {"dice": float(dice), **surface}


def straightforward(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float
) -> Values:
    """As MetricsReloaded: border voxels, distance maps of the whole image, plain percentiles."""
    both = np.sum(prediction & reference)
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    maps = [ndimage.distance_transform_edt(~border, sampling=spacing_mm) for border in borders]
    distances = [maps[1][borders[0]], maps[0][borders[1]]]
    near = sum(np.sum(distance <= tolerance_mm) for distance in distances)
    return {
        "dice": float(2 * both / (np.sum(prediction) + np.sum(reference))),
        "jaccard": float(both / np.sum(prediction | reference)),
        "sensitivity": float(both / np.sum(reference)),
        "specificity": float(np.sum(~prediction & ~reference) / np.sum(~reference)),
        "nsd": float(near / sum(distance.size for distance in distances)),
        "hd95_mm": float(max(np.percentile(distance, 95) for distance in distances)),
        "hd100_mm": float(max(distance.max() for distance in distances)),
    }


# Same definition -> equal values; * counts border voxels, which is another definition.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "case_metrics, all ten": case_metrics,
    "case_metrics, all ten, 2 threads": lambda *a: case_metrics(*a, threads=2),
    "surface-distance (Dice and surfaces)": surface_distance_all,
    "MONAI, all six (HD95*)": monai_all_six,
    "MetricsReloaded's way (NSD* HD*)": straightforward,
}


def ellipsoid(shape: tuple[int, int, int], radius: float) -> Mask:
    """Fills about `radius` of each half axis; its surface is wavy, as a drawn organ's is."""
    d, h, w = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True
    )
    waves = np.float32(0.08) * np.sin(7 * d + 1) * np.sin(6 * h) * np.sin(8 * w + 2)
    return np.sqrt(d**2 + h**2 + w**2) < np.float32(radius) + waves


def hippocampus() -> Mask:
    import nibabel

    path = sorted((MSD_ROOT / "Task04_Hippocampus" / "labelsTr").glob("[!.]*.nii.gz"))[0]
    return np.ascontiguousarray((np.asarray(nibabel.load(path).dataobj) > 0).T)


def changed(mask: Mask, moved: int) -> Mask:
    """The mask moved along H, with a tenth of the voxels around its border flipped."""
    moved_mask = np.roll(mask, moved, axis=1)
    rim = ndimage.binary_dilation(moved_mask) & ~ndimage.binary_erosion(moved_mask)
    return moved_mask ^ (rim & (np.random.default_rng(0).random(mask.shape) < 0.1))


def pairs() -> dict[str, tuple[Callable[[], tuple[Mask, Mask]], Spacing, float]]:
    """Name -> (prediction and reference, spacing, tolerance)."""
    cube, ct = (128, 128, 128), (300, 512, 512)
    iso, thick = (1.0, 1.0, 1.0), (2.5, 0.8, 0.8)

    def noisy() -> tuple[Mask, Mask]:
        organ = ellipsoid(cube, 0.5)
        return organ ^ (np.random.default_rng(0).random(cube) < 0.01), organ

    return {
        "hippocampus (real)": (lambda: (changed(hippocampus(), 1), hippocampus()), iso, 1.0),
        "128^3, organ": (lambda: (changed(ellipsoid(cube, 0.5), 2), ellipsoid(cube, 0.48)), iso, 2),
        "128^3, many blobs": (
            lambda: (random_blob(cube, 1, 8.0), random_blob(cube, 1, 8.0, 0.115)),
            iso,
            1.13,
        ),
        "128^3, organ + 1 % noise": (noisy, iso, 1.13),
        "512x512x300, organ": (
            lambda: (changed(ellipsoid(ct, 0.35), 2), ellipsoid(ct, 0.34)),
            thick,
            3.0,
        ),
    }


def seconds(run: Callable[[], Values]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "?")


def measure(pair: tuple[Mask, Mask], spacing: Spacing, tolerance: float, rounds: int) -> None:
    def bound(run: Implementation) -> Callable[[], Values]:
        return lambda: run(*pair, spacing, tolerance)

    runs = {label: bound(run) for label, run in IMPLEMENTATIONS.items()}
    values = {label: run() for label, run in runs.items()}  # also warms up
    times: dict[str, list[float]] = {label: [] for label in runs}
    draw = random.Random(0)
    for _ in range(rounds):
        for label in draw.sample(list(runs), len(runs)):
            times[label].append(seconds(runs[label]))
    ours = next(iter(times.values()))
    heads = "".join(
        f"{key.split('_')[0].upper():>{int(width.split('.')[0])}}" for key, width in SHOWN.items()
    )
    print(f"  {'':38}{'best':>9}{'median':>9}  {'ratio':24}{heads}")
    for label, taken in times.items():
        ratios = [theirs / our for theirs, our in zip(taken, ours, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        shown = "".join(
            f"{values[label][key]:{width}}"
            if key in values[label]
            else " " * int(width.split(".")[0])
            for key, width in SHOWN.items()
        )
        best, median = min(taken) * 1e3, statistics.median(taken) * 1e3
        print(f"  {label:38}{best:9.1f}{median:9.1f}  {ratio:24}{shown}", flush=True)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large-rounds", type=int, default=3, help="of the 512x512x300 pair")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packages = ("numpy", "scipy", "torch", "monai", "surface-distance")
    print("All metrics of a mask pair: ms, one thread unless it says two")
    print(f"machine   {cpu_name()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"load      {os.getloadavg()[0]:.1f} at the start: other work shares the cores")
    print(
        f"versions  Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    print("ratio     time / case_metrics of the same round: median (smallest to largest)")
    print("*         border voxels instead of surfels: another definition, so another value")
    for name, (make, spacing, tolerance) in pairs().items():
        pair = make()
        rounds = arguments.large_rounds if name.startswith("512") else arguments.rounds
        print(
            f"\n{name}: {'x'.join(map(str, pair[0].shape))}, {pair[0].sum()} and {pair[1].sum()} "
            f"voxels of {spacing} mm, NSD at {tolerance:g} mm, {rounds} rounds"
        )
        measure(pair, spacing, tolerance, rounds)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
