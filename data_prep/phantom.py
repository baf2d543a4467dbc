"""`mvl phantom`: synthetic tasks in MSD's format, for tests and for a first run without data.

Two have numbers of their own (91, 93); `--stand-ins` makes one with the channels and labels of each
of the ten tasks, which a study's `--smoke` walks through. No name can be taken for a real task's.
Every case is drawn from the
seed and its own name, and written with fixed time stamps: the same seed gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from data_prep.phantom_scans import PhantomScan, brain, trunk
from mvl_dist.errors import UserError
from mvl_dist.files import full_disk_is_a_user_error, write_text_atomically
from mvl_dist.tasks import TASKS, Region, Task, resolve_task_name, stand_in_name

# Raised whenever the same seed would give other files.
PHANTOM_VERSION = 2
# Of the scans alone: they are still the first version's.
_DRAWING_VERSION = 1
_ORIENTATIONS = ("LPS", "RAS", "LAS")


@dataclass(frozen=True)
class PhantomOptions:
    """Write synthetic tasks in the format of the Medical Segmentation Decathlon."""

    msd_root: Path
    """Folder to write Task91_PhantomTumour and Task93_PhantomLesion into."""
    stand_ins: tuple[str, ...] = ()
    """Instead: stand-ins of these tasks (Task01 ... Task10, or all), e.g. Task04_PhantomHippocampus
    with the channels and labels of Task04_Hippocampus."""
    cases: int = 20
    """Cases a task; a test part and five folds need at least 6."""
    seed: int = 0
    """Another seed gives other cases."""


@dataclass(frozen=True)
class PhantomTask:
    """A synthetic task: how it is described, and what draws its scans."""

    name: str
    prefix: str
    description: str
    modality: tuple[str, ...]
    labels: tuple[str, ...]
    draw: Callable[[np.random.Generator], PhantomScan]
    regions: tuple[Region, ...] = ()


PHANTOM_TASKS = (
    PhantomTask(
        "Task91_PhantomTumour",
        "tumour",
        "Synthetic brain with a nested tumour, four MRI channels; not from any patient",
        ("FLAIR", "T1w", "t1gd", "T2w"),
        ("edema", "non-enhancing tumor", "enhancing tumour"),
        brain,
        (Region("whole tumour", (1, 2, 3)), Region("tumour core", (2, 3))),
    ),
    PhantomTask(
        "Task93_PhantomLesion",
        "lesion",
        "Synthetic trunk with an organ and a small lesion in it, CT; not from any patient",
        ("CT",),
        ("organ", "lesion"),
        trunk,
        (Region("whole organ", (1, 2)),),
    ),
)


def stand_in(task: Task) -> PhantomTask:
    """A synthetic task with another one's channels, labels and regions."""
    draw_like = trunk if task.intensity == "ct" else brain

    def draw(rng: np.random.Generator) -> PhantomScan:
        scan = draw_like(rng)
        channels = len(task.modalities)
        image = scan.image[..., :channels] if channels > 1 else scan.image
        if channels == 1 and image.ndim == 4:
            image = image[..., 0]
        return PhantomScan(image, np.minimum(scan.label, len(task.labels)), scan.spacing_mm)

    return PhantomTask(
        stand_in_name(task.name),
        task.name.partition("_")[2].lower(),
        f"Synthetic scans with the channels and labels of {task.name}; not from any patient",
        task.modalities,
        tuple(name for _, name in task.labels),
        draw,
        task.union_regions,
    )


def _affine(rng: np.random.Generator, scan: PhantomScan, oblique: bool) -> npt.NDArray[np.float64]:
    """RAS+ affine of a scan, tilted by up to 8 degrees if `oblique`; origin near the centre."""
    axis = rng.standard_normal(3)
    angle = np.deg2rad(rng.uniform(2, 8)) if oblique else 0.0
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(scan.spacing_mm)
    affine[:3, 3] = rng.uniform(-20, 20, 3) - affine[:3, :3] @ (np.array(scan.label.shape) / 2)
    return affine


def _write(path: Path, image: nib.Nifti1Image) -> None:
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_case(folder: Path, task: PhantomTask, number: int, seed: int) -> dict[str, str]:
    """Draw and write one case; returns its entry in dataset.json."""
    name = f"{task.prefix}_{number:03d}"
    digest = hashlib.sha256(f"{_DRAWING_VERSION}/{seed}/{task.name}/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    scan = task.draw(rng)
    affine = _affine(rng, scan, oblique=number % 3 == 0)
    codes = nib.orientations.axcodes2ornt(_ORIENTATIONS[number % len(_ORIENTATIONS)])
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), codes)

    is_ct = task.modality == ("CT",)
    # As in the released files: CT and half of the MRI as int16, the other MRI as float32.
    whole = is_ct or number % 2 == 0
    voxels = np.rint(scan.image).astype(np.int16) if whole else scan.image
    shift = -1024 if is_ct and number % 2 == 0 else 0
    image = nib.Nifti1Image(voxels - np.int16(shift), affine).as_reoriented(turn)
    if shift:
        image.header.set_slope_inter(1, shift)  # stored value + shift = HU
    label = nib.Nifti1Image(scan.label, affine).as_reoriented(turn)
    _write(folder / "imagesTr" / f"{name}.nii.gz", image)
    _write(folder / "labelsTr" / f"{name}.nii.gz", label)
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def _settings(cases: int, seed: int) -> dict[str, int]:
    return {"version": PHANTOM_VERSION, "cases": cases, "seed": seed}


def _is_there(folder: Path, cases: int, seed: int) -> bool:
    try:
        made = json.loads((folder / "dataset.json").read_text()).get("phantom")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (json.JSONDecodeError, AttributeError):
        made = "something else"
    if made != _settings(cases, seed):
        raise UserError(
            f"{folder}: holds {made or 'no phantom'}, not {_settings(cases, seed)}: "
            "delete it or choose another --msd-root"
        )
    return True


def make_phantom_task(msd_root: Path, task: PhantomTask, cases: int = 20, seed: int = 0) -> Path:
    """Write one task unless it is already there; returns its folder. dataset.json comes last.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = msd_root / task.name
    if _is_there(folder, cases, seed):
        return folder
    with full_disk_is_a_user_error(msd_root):
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        training = [write_case(folder, task, number, seed) for number in range(1, cases + 1)]
    dataset: dict[str, Any] = {
        "name": task.name[7:],
        "description": task.description,
        "reference": "drawn by 'mvl phantom'",
        "licence": "CC0 1.0",
        "release": "1.0",
        "tensorImageSize": "4D" if len(task.modality) > 1 else "3D",
        "modality": {str(n): name for n, name in enumerate(task.modality)},
        "labels": {str(n): name for n, name in enumerate(("background", *task.labels))},
        "numTraining": cases,
        "numTest": 0,
        "training": training,
        "test": [],
        "tolerance_mm": 2.0,
        "regions": {region.name: list(region.labels) for region in task.regions},
        "phantom": _settings(cases, seed),
    }
    write_text_atomically(folder / "dataset.json", json.dumps(dataset, indent=1))
    return folder


def main(argv: list[str]) -> int:
    """Entry of `mvl phantom`."""
    import tyro  # slow to import, and needed by the command line only

    options = tyro.cli(PhantomOptions, prog="mvl phantom", args=argv)
    if options.cases < 1:
        raise UserError(f"--cases {options.cases}: takes a positive number")
    asked = options.stand_ins
    names = TASKS if "all" in asked else [resolve_task_name(name) for name in asked]
    for task in [stand_in(TASKS[name]) for name in names] or PHANTOM_TASKS:
        folder = make_phantom_task(options.msd_root, task, options.cases, options.seed)
        print(f"{folder}: {options.cases} cases, {task.description}")
    return 0
