"""New scans: read as the converter reads its own, and results written to lie exactly over them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mvl_dist.errors import UserError
from mvl_dist.files import write_bytes_atomically
from mvl_dist.inputs import Case
from mvl_dist.nifti import (
    Orientation,
    apart_mm,
    orientation_of,
    parse_nifti,
    read_channels,
    states_orientation,
)

# What a header says of a volume's place: all that a viewer uses to lay one file over another.
GEOMETRY = (
    *("qform_code", "sform_code", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True)
class Scan:
    """A scan as read.

    Attributes:
        image: (C, D, H, W) raw intensities, scaled as the header says (CT: HU).
        header_of: the file whose geometry the results take.
    """

    image: npt.NDArray[np.float32]
    orientation: Orientation
    header_of: nib.Nifti1Image

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along D, H, W."""
        return self.orientation.spacing_mm

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.orientation.affine[:3, :3]))) / 1000


def read_case(case: Case, modalities: Sequence[str], wanted: int, orientation: str = "") -> Scan:
    """Read the channels that a model takes.

    Args:
        modalities: the task's channels.
        wanted: how many of them the model takes, from the first; a file may hold these or all.
        orientation: axis codes to assume for a file that states none, e.g. `RAS`.

    Raises:
        UserError: what is wrong with which file.
    """
    images = [_read(path, needs_orientation=not orientation) for path in case.files]
    first, path = images[0], case.files[0]
    for other, image in zip(case.files[1:], images[1:], strict=True):
        if image.shape[:3] != first.shape[:3]:
            raise UserError(
                f"{other}: shape {image.shape[:3]} differs from {first.shape[:3]} of {path.name}: "
                "the channels of a case must lie on one grid; resample them onto one"
            )
        distance = apart_mm(first, image)
        if distance:
            raise UserError(
                f"{other}: lies up to {distance:.3g} mm from {path.name}: the channels of a case "
                "must lie on one grid; resample them onto one"
            )
    if len(images) > 1:
        pairs = zip(case.files, images, modalities, strict=False)
        values = np.concatenate([read_channels(f, image, [m]) for f, image, m in pairs], axis=-1)
    else:
        held = first.shape[3] if len(first.shape) > 3 else 1
        values = read_channels(path, first, modalities[: wanted if held == wanted else None])
    affine = first.affine if states_orientation(first) else _assumed_affine(first, orientation)
    turn = orientation_of(affine, first.shape[:3])
    return Scan(turn.canonical(values[..., :wanted]), turn, first)


def _read(path: Path, needs_orientation: bool) -> nib.Nifti1Image:
    try:
        image = parse_nifti(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if needs_orientation and not states_orientation(image):
        raise UserError(
            f"{path}: the header does not say how the scan lies (qform and sform codes are 0): "
            "left and right would be guessed; say how its axes run with --assume-orientation "
            "(LAS is what nibabel assumes), or repair the header"
        )
    return image


def _assumed_affine(image: nib.Nifti1Image, codes: str) -> npt.NDArray[np.float64]:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    zooms = image.header.get_zooms()
    for column, (row, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        affine[int(row), column] = sign * zooms[column]
    return affine


def check_orientation(codes: str) -> str:
    """Axis codes in capitals.

    Raises:
        UserError: not three letters, one of each of LR, PA and IS.
    """
    letters = codes.upper()
    if sorted(next((p for p in ("LR", "PA", "IS") if c in p), c) for c in letters) != [
        "IS",
        "LR",
        "PA",
    ]:
        raise UserError(
            f"--assume-orientation {codes}: takes the directions in which x, y and z grow, one of "
            "L or R, one of P or A, one of I or S, e.g. LAS"
        )
    return letters


def write_over(path: Path, values: npt.NDArray[Any], scan: Scan) -> None:
    """Write (D, H, W) or (C, D, H, W) as a NIfTI file that lies exactly over the scan, in one step.

    Shape, axes, zooms, sform, qform and their codes are the scan's; nothing else of its header is
    kept, which may name a patient.

    Raises:
        UserError: the disk is full or not writable.
    """
    filed = scan.orientation.as_filed(values)
    like = scan.header_of.header
    header = type(like)()
    header.set_data_dtype(filed.dtype)
    header.set_data_shape(filed.shape)
    header["pixdim"][:4] = like["pixdim"][:4]
    for field in GEOMETRY:
        header[field] = like[field]
    header["descrip"] = b"mvl-dist"
    image = type(scan.header_of)(filed, None, header)
    write_bytes_atomically(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
