"""Tasks of the real sizes for benchmarks: MSD's format, drawn with noise so that gzip behaves.

Real CT compresses by 1.7 to 2.5 and a skull-stripped brain by 10 to 15; these do too. Nothing is
from any patient.
"""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

# What the tools that made the public files use.
_GZIP_LEVEL = 6
# What a test part and five folds need; beyond the drawn ones they are copies.
CASES = 6


@dataclass(frozen=True)
class SizedTask:
    """`shapes` are x, y, z of each case, `spacings` in mm along them."""

    name: str
    modality: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float], ...]
    voxel: str


CT = SizedTask(
    "Task81_SizedCT",
    ("CT",),
    ((512, 512, 100), (512, 512, 140), (512, 512, 220), (512, 512, 300)),
    ((0.70, 0.70, 1.0), (0.78, 0.78, 1.25), (0.82, 0.82, 1.0), (0.76, 0.76, 0.8)),
    "int16",
)
BRAIN = SizedTask(
    "Task82_SizedBrain",
    ("FLAIR", "T1w", "t1gd", "T2w"),
    ((240, 240, 155),) * 2,
    ((1.0, 1.0, 1.0),) * 2,
    "float32",
)


LARGEST_CT = SizedTask(
    "Task83_LargestCT", ("CT",), ((512, 512, 700),), ((0.75, 0.75, 0.8),), "int16"
)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], scale: int) -> npt.NDArray:
    """A smooth field of mean 0 and deviation 1: coarse noise, enlarged."""
    coarse = rng.standard_normal([n // scale + 2 for n in shape], dtype=np.float32)
    zoom = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
    field = ndimage.zoom(coarse, zoom, order=1)
    return field / field.std()


def _radius(
    shape: tuple[int, ...], centre: tuple[float, ...], axes: tuple[float, ...]
) -> npt.NDArray:
    """Distance from `centre` in units of the half axes; both are fractions of the shape."""
    parts = [
        ((np.linspace(0, 1, n, dtype=np.float32) - np.float32(c)) / np.float32(a)).reshape(
            [-1 if axis == other else 1 for other in range(3)]
        )
        ** 2
        for axis, (n, c, a) in enumerate(zip(shape, centre, axes, strict=True))
    ]
    return np.sqrt(parts[0] + parts[1] + parts[2])


def _label(shape: tuple[int, int, int], bend: npt.NDArray) -> npt.NDArray[np.uint8]:
    """An organ of a tenth of the box with two lesions in it."""
    label = np.zeros(shape, np.uint8)
    label[_radius(shape, (0.35, 0.45, 0.5), (0.2, 0.24, 0.36)) + 0.06 * bend < 1] = 1
    for centre, size in (((0.3, 0.4, 0.45), 0.06), ((0.42, 0.5, 0.6), 0.04)):
        label[_radius(shape, centre, (size, size, 1.5 * size)) + 0.1 * bend < 1] = 2
    return label


def draw(task: SizedTask, number: int) -> tuple[npt.NDArray, npt.NDArray[np.uint8]]:
    """Image (x, y, z) or (x, y, z, channel) and label (x, y, z) of a case."""
    rng = np.random.default_rng(number)
    shape = task.shapes[number]
    bend = _smooth(rng, shape, 24)
    label = _label(shape, bend)
    body = _radius(shape, (0.5, 0.5, 0.5), (0.44, 0.36, 0.44 if task is BRAIN else 9.0))
    if task is not BRAIN:
        hu = np.where(body < 0.9, np.float32(40), np.float32(-95))
        hu[body >= 1] = -1000
        hu[label == 1] = 110
        hu[label == 2] = 60
        for z in range(shape[2]):  # the noise of a reconstruction: correlated within a slice
            noise = rng.standard_normal(shape[:2], dtype=np.float32)
            hu[:, :, z] += 30 * ndimage.gaussian_filter(noise, 0.6)
        hu[_radius(shape, (0.5, 0.5, 0.5), (0.5, 0.5, 99.0)) >= 1] = -1024
        return np.clip(np.rint(hu), -1024, 3071).astype(task.voxel), label
    inside = body + 0.03 * bend < 0.9
    label[~inside] = 0
    image = np.zeros((*shape, 4), np.float32)
    voxels = int(inside.sum())
    tissue = 90 * label[inside].astype(np.float32) + 50 * bend[inside]
    for channel in range(4):
        noise = 12 * rng.standard_normal(voxels, dtype=np.float32)
        clean = tissue + 400 + 60 * channel
        image[inside, channel] = np.maximum(np.rint(clean + noise), 1)
    return image.astype(task.voxel), label


def _write(path: Path, values: npt.NDArray, affine: npt.NDArray[np.float64]) -> None:
    raw = nib.Nifti1Image(values, affine).to_bytes()
    path.write_bytes(gzip.compress(raw, compresslevel=_GZIP_LEVEL, mtime=0))


def write_task(root: Path, task: SizedTask) -> Path:
    """Write a task below `root` unless it is there; returns its folder."""
    folder = root / task.name
    if (folder / "dataset.json").exists():
        return folder
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    files = [
        (f"./imagesTr/case_{number}.nii.gz", f"./labelsTr/case_{number}.nii.gz")
        for number in range(CASES)
    ]
    drawn = len(task.shapes)
    for number, spacing in enumerate(task.spacings):
        affine = np.diag([*spacing, 1.0]) @ np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS
        for name, values in zip(files[number], draw(task, number), strict=True):
            _write(folder / name, values, affine)
    for number in range(drawn, CASES):
        for copy, name in zip(files[number], files[number % drawn], strict=True):
            shutil.copyfile(folder / name, folder / copy)
    dataset = {
        "modality": {str(n): name for n, name in enumerate(task.modality)},
        "labels": {"0": "background", "1": "organ", "2": "lesion"},
        "numTraining": len(files),
        "training": [{"image": image, "label": label} for image, label in files],
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder
