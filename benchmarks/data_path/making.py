"""Makes what competitors' stores are made from: scans as large as MSD's, out of real voxels.

The only MSD task at hand here is the hippocampus, whose scans are 35 x 50 x 35 voxels. Made 128^3
they are blown up more than threefold, so smooth that they compress better than other tasks'
scans do. So scans are laid side by side until they fill one of whole-organ size: every voxel is a
measured one, with its noise, as in a full scan; without MSD data, phantoms are laid so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from benchmarks.data_path.source import HIPPOCAMPUS, STARTS, TASK, Size, Source
from data_prep.convert import ConvertOptions, convert_task
from data_prep.phantom import PHANTOM_TASKS, make_phantom_task
from mvl_dist.files import full_disk_is_a_user_error
from mvl_dist.store import Shape3D, read_manifest


def make(folder: Path, size: Size, msd_root: Path | None, workers: int) -> Source:
    """Lay scans, convert them, and say what they are made of."""
    if msd_root is None:
        small = make_phantom_task(folder / "phantoms", PHANTOM_TASKS[1], cases=6)
        made_of = "synthetic CT (mvl phantom): its noise is smoother than a scanner's"
    else:
        small = msd_root / HIPPOCAMPUS
        made_of = f"real voxels of {HIPPOCAMPUS}"
    msd = folder / "msd" / TASK
    with full_disk_is_a_user_error(folder):
        names = _write_task(msd, small, size)
    store = folder / "store"
    grid = (size.grid,) * 3
    convert_task(msd, ConvertOptions(msd_root=msd.parent, store=store, grid=grid, workers=workers))
    cases = sorted(read_manifest(store, TASK).cases)
    assert cases == names
    return Source(msd, store, tuple(cases[: size.cases]), tuple(cases[size.cases :]), size, made_of)


def _write_task(msd: Path, small: Path, size: Size) -> list[str]:
    for part in ("imagesTr", "labelsTr"):
        (msd / part).mkdir(parents=True)
    dataset = json.loads((small / "dataset.json").read_text())
    cells = _cells(small, dataset["training"], size.cell)
    names, entries = [], []
    for number in range(size.cases + STARTS):
        name = f"mosaic_{number:03d}"
        entry = {role: f"./{role}sTr/{name}.nii.gz" for role in ("image", "label")}
        for role, values in zip(entry, _lay(cells, size.scan), strict=True):
            nib.save(nib.Nifti1Image(values, np.eye(4)), msd / entry[role])
        names.append(name)
        entries.append(entry)
    dataset |= {"training": entries, "test": [], "numTraining": len(entries), "numTest": 0}
    (msd / "dataset.json").write_text(json.dumps(dataset))
    return names


def _cells(
    small: Path, entries: list[dict[str, str]], cell: Shape3D
) -> Iterator[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]]:
    """Middle parts of small scans, in turns without end, mirrored anew in each turn."""
    scans = []
    for entry in entries:
        image, label = (
            np.asarray(nib.load(small / entry[role]).dataobj) for role in ("image", "label")
        )
        middle = tuple(
            slice(max(0, (n - m) // 2), max(0, (n - m) // 2) + m)
            for n, m in zip(label.shape, cell, strict=True)
        )
        image, label = image[middle], label[middle]
        # Scans differ in scale by orders; in one scan the small ones would be flat.
        scale = 300 / max(float(np.abs(image).mean()), 1e-6)
        scans.append((np.rint(image * scale).clip(-32768, 32767).astype(np.int16), label))
    turn = 0
    while True:
        mirrored = tuple(axis for axis in range(3) if turn >> axis & 1)
        for image, label in scans:
            yield np.flip(image, mirrored), np.flip(label, mirrored).astype(np.uint8)
        turn += 1


def _lay(
    cells: Iterator[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]], shape: Shape3D
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    image, label = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    x = 0
    while x < shape[0]:
        y, row = 0, 1
        while y < shape[1]:
            z, column = 0, 1
            while z < shape[2]:
                part, its_label = next(cells)
                place = tuple(
                    slice(a, min(a + n, whole))
                    for a, n, whole in zip((x, y, z), part.shape, shape, strict=True)
                )
                inside = tuple(slice(0, at.stop - at.start) for at in place)
                image[place], label[place] = part[inside], its_label[inside]
                z += part.shape[2]
                column = max(column, part.shape[1])
                row = max(row, part.shape[0])
            y += column
        x += row
    return image, label
