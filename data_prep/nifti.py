"""One labelled scan of a task: two NIfTI files read, checked, brought to one orientation.

Every defect is a UserError of one line that names the file, the reason and the mending.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from data_prep.source import Pair
from mvl_dist.errors import UserError
from mvl_dist.nifti import (
    FETCH_AGAIN,
    REPAIR,
    Affine,
    apart_mm,
    orientation_of,
    parse_nifti,
    raw_voxels,
    read_voxels,
    states_orientation,
)
from mvl_dist.store import Shape3D, Spacing
from mvl_dist.tasks import Task


@dataclass(frozen=True)
class SourceFile:
    """What identifies a file as read: `mtime_ns` for a quick look, `sha256` for certainty."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Scan:
    """A checked case, axes D, H, W of the RAS+ orientation (see mvl_dist/store/format.py).

    Attributes:
        image: (C, D, H, W) raw intensities, scaled as the header says (CT: HU); the file's own type
            and memory where that needs no scaling, so read-only.
        label: (D, H, W); the file's own memory too, where its values are bytes.
        affine: 4x4, from voxel (w, h, d) to RAS+ millimetres.
        source_affine: 4x4 of the image file as distributed.
        oriented: False if the header states no orientation (both codes 0) and nibabel's default
            was taken.
        sources: `image` and `label`.
        raw_bytes: size of both files' voxels before compression.
    """

    name: str
    image: npt.NDArray[Any]
    label: npt.NDArray[np.uint8]
    spacing_mm: Spacing
    affine: Affine
    source_affine: Affine
    source_orientation: str
    oriented: bool
    sources: Mapping[str, SourceFile]
    raw_bytes: int

    @property
    def native_shape(self) -> Shape3D:
        """D, H, W of the scan as acquired."""
        d, h, w = self.label.shape
        return d, h, w


def read_source(path: Path, root: Path) -> tuple[SourceFile, bytes]:
    """Read a file once: its identity (name relative to `root`) and its bytes.

    Raises:
        UserError: missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing, though dataset.json lists it; {FETCH_AGAIN}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {FETCH_AGAIN}") from error
    name = path.relative_to(root).as_posix()
    digest = hashlib.sha256(data).hexdigest()
    return SourceFile(name, len(data), status.st_mtime_ns, digest), data


def _read_label(path: Path, label: nib.Nifti1Image, task: Task) -> npt.NDArray[np.uint8]:
    """Label values (x, y, z)."""
    values = raw_voxels(label)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    listed = {0, *(value for value, _ in task.labels)}
    with np.errstate(invalid="ignore"):  # a NaN is found below
        small = values.astype(np.uint8, copy=False)
    if small.dtype == values.dtype or np.array_equal(small, values):
        # Sorting tens of millions of voxels takes seconds; their maximum mostly says enough.
        dense = listed == set(range(len(listed))) and int(small.max()) < len(listed)
        found = np.empty(0) if dense else np.unique(small)
    else:
        found = np.unique(values)
    strange = [f"{value:g}" for value in found.tolist() if value not in listed]
    if strange:
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise UserError(
            f"{path}: label values {shown} are not among those of dataset.json "
            f"({', '.join(map(str, sorted(listed)))}); {REPAIR}"
        )
    return small


def _check_same_grid(pair: Pair, image: nib.Nifti1Image, label: nib.Nifti1Image) -> None:
    label_shape = label.shape[:3] if label.shape[3:] in ((), (1,)) else label.shape
    if image.shape[:3] != label_shape:
        raise UserError(
            f"{pair.label}: shape {label.shape} differs from its image's {image.shape[:3]}; "
            f"{REPAIR}"
        )
    distance = apart_mm(image, label)
    if distance:
        raise UserError(
            f"{pair.label}: its affine lies up to {distance:.3g} mm from its image's; {REPAIR}"
        )


def _rows(affine: npt.NDArray[np.float64]) -> Affine:
    return tuple(tuple(float(value) for value in row) for row in affine)


def read_scan(pair: Pair, task: Task) -> Scan:
    """Read, check and orient one case.

    Raises:
        UserError: what is wrong with which file, in one line.
    """
    image_source, image_data = read_source(pair.image, pair.root)
    label_source, label_data = read_source(pair.label, pair.root)
    image_file = parse_nifti(pair.image, image_data)
    label_file = parse_nifti(pair.label, label_data)
    del image_data, label_data
    _check_same_grid(pair, image_file, label_file)
    raw_bytes = sum(
        int(np.prod(file.shape)) * file.header.get_data_dtype().itemsize
        for file in (image_file, label_file)
    )
    orientation = orientation_of(image_file.affine, image_file.shape[:3])
    label = _read_label(pair.label, label_file, task)
    image = read_voxels(pair.image, image_file, task.modalities)
    return Scan(
        name=pair.name,
        image=orientation.canonical_view(image),
        label=orientation.canonical_view(label),
        spacing_mm=orientation.spacing_mm,
        affine=_rows(orientation.affine),
        source_affine=_rows(image_file.affine),
        source_orientation=orientation.codes,
        oriented=states_orientation(image_file),
        sources={"image": image_source, "label": label_source},
        raw_bytes=raw_bytes,
    )
