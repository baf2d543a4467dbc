"""One labelled scan: two NIfTI files read to their last byte, checked, brought to one orientation.

Every defect is a UserError of one line that names the file, the reason and the mending.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from data_prep.source import Pair
from mvl_dist.errors import UserError
from mvl_dist.store import Shape3D, Spacing
from mvl_dist.tasks import Task

FETCH_AGAIN = "fetch the file again, or leave the case out with --skip-bad"
REPAIR = "repair the file, or leave the case out with --skip-bad"

# Image and label count as aligned if no corner of the volume lies further apart than this. Two
# headers of one scan differ by float32 rounding (about 1e-4 mm at 500 mm from the origin); a
# hundredth of a voxel is far above that and far below anything a label can express.
ALIGNED_MM = 1e-3
ALIGNED_VOXELS = 1e-2

Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SourceFile:
    """What identifies a file as read: `mtime_ns` for a quick look, `sha256` for certainty."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Scan:
    """A checked case, axes D, H, W of the RAS+ orientation (see mvl_dist/store.py).

    Attributes:
        image: (C, D, H, W) raw intensities, scaled as the header says (CT: HU).
        label: (D, H, W).
        affine: 4x4, from voxel (w, h, d) to RAS+ millimetres.
        source_affine: 4x4 of the image file as distributed.
        oriented: False if the header states no orientation (both codes 0) and nibabel's default
            was taken.
        sources: `image` and `label`.
        raw_bytes: size of both files' voxels before compression.
    """

    name: str
    image: npt.NDArray[np.float32]
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


def _decompress(path: Path, data: bytes) -> bytes:
    if data[:2] != b"\x1f\x8b":
        if path.name.lower().endswith(".gz"):
            raise UserError(f"{path}: not a gzip file; {FETCH_AGAIN}")
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "truncated" if isinstance(error, EOFError) else "damaged"
        raise UserError(f"{path}: {what} gzip file ({error}); {FETCH_AGAIN}") from error


def parse_nifti(path: Path, data: bytes) -> nib.Nifti1Image:
    """Return the image of a file's bytes (.nii or .nii.gz) after its header and size were checked.

    Raises:
        UserError: not gzip, not NIfTI, cut short, longer than announced, or without a usable
            geometry.
    """
    raw = _decompress(path, data)
    kind = nib.Nifti2Image if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    try:
        image = kind.from_bytes(raw)
    except Exception as error:  # nibabel raises many kinds on bytes that are no header
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a NIfTI file ({reason}); {FETCH_AGAIN}") from error
    if image.header.get_data_dtype().kind not in "iuf":
        dtype = image.header.get_data_dtype()
        raise UserError(f"{path}: voxels of type {dtype} are not intensities; {REPAIR}")
    if 0 in image.shape or min(image.shape, default=0) < 0 or len(image.shape) < 3:
        raise UserError(f"{path}: shape {image.shape} holds no volume; {REPAIR}")
    voxels = int(np.prod(image.shape, dtype=object)) * image.header.get_data_dtype().itemsize
    expected = int(image.dataobj.offset) + voxels
    if len(raw) != expected:
        difference = "ends early" if len(raw) < expected else "is longer than announced"
        raise UserError(
            f"{path}: {difference}: {len(raw)} bytes where the header says {expected}; "
            f"{FETCH_AGAIN}"
        )
    _check_geometry(path, image)
    return image


def _check_geometry(path: Path, image: nib.Nifti1Image) -> None:
    # xyzt_units: bits 0-2, 1 metre, 2 millimetre, 3 micron, 0 unknown (taken as millimetre).
    if int(image.header["xyzt_units"]) & 7 in (1, 3):
        raise UserError(f"{path}: the header's unit of length is not the millimetre; {REPAIR}")
    affine = image.affine
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3] / spacing)) if np.isfinite(affine).all() else 0
    if not (spacing > 1e-6).all() or not volume > 1e-3:
        raise UserError(
            f"{path}: the header's affine is degenerate (spacing "
            f"{', '.join(f'{s:g}' for s in spacing)} mm); {REPAIR}"
        )


def _read_image(path: Path, image: nib.Nifti1Image, task: Task) -> npt.NDArray[np.float32]:
    """Voxels (x, y, z, c)."""
    channels = len(task.modalities)
    shape = image.shape if len(image.shape) > 3 else (*image.shape, 1)
    if len(shape) != 4 or shape[3] != channels:
        raise UserError(
            f"{path}: shape {image.shape} does not hold the {channels} channel"
            f"{'s' if channels > 1 else ''} that dataset.json lists "
            f"({', '.join(task.modalities)}); {REPAIR}"
        )
    values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    # An infinity or a NaN anywhere makes the sum not finite; no mask as large as the scan.
    if not np.isfinite(values.sum(dtype=np.float64)):
        bad = int(values.size - np.isfinite(values).sum())
        raise UserError(f"{path}: {bad} voxels are NaN or infinite; {REPAIR}")
    return values


def _read_label(path: Path, label: nib.Nifti1Image, task: Task) -> npt.NDArray[np.uint8]:
    """Label values (x, y, z)."""
    values = np.asanyarray(label.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    listed = {0, *(value for value, _ in task.labels)}
    if values.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(values.ravel(order="K"), minlength=256))
    else:
        found = np.unique(values)
    strange = [f"{value:g}" for value in found.tolist() if value not in listed]
    if strange:
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise UserError(
            f"{path}: label values {shown} are not among those of dataset.json "
            f"({', '.join(map(str, sorted(listed)))}); {REPAIR}"
        )
    return values.astype(np.uint8, copy=False)


def _check_same_grid(pair: Pair, image: nib.Nifti1Image, label: nib.Nifti1Image) -> None:
    label_shape = label.shape[:3] if label.shape[3:] in ((), (1,)) else label.shape
    if image.shape[:3] != label_shape:
        raise UserError(
            f"{pair.label}: shape {label.shape} differs from its image's {image.shape[:3]}; "
            f"{REPAIR}"
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in label_shape])).reshape(3, -1)
    apart = image.affine[:3] - label.affine[:3]
    distance = np.linalg.norm(apart[:, :3] @ corners + apart[:, 3:], axis=0).max()
    spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0)).min()
    if distance > ALIGNED_MM + ALIGNED_VOXELS * spacing:
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
    turn = nib.orientations.io_orientation(image_file.affine)
    affine = image_file.affine @ nib.orientations.inv_ornt_aff(turn, image_file.shape[:3])
    label = nib.orientations.apply_orientation(_read_label(pair.label, label_file, task), turn)
    image = nib.orientations.apply_orientation(_read_image(pair.image, image_file, task), turn)
    w, h, d = (float(s) for s in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return Scan(
        name=pair.name,
        image=np.ascontiguousarray(image.T),
        label=np.ascontiguousarray(label.T),
        spacing_mm=(d, h, w),
        affine=_rows(affine),
        source_affine=_rows(image_file.affine),
        source_orientation="".join(nib.aff2axcodes(image_file.affine)),
        oriented=bool(image_file.header["qform_code"] or image_file.header["sform_code"]),
        sources={"image": image_source, "label": label_source},
        raw_bytes=raw_bytes,
    )
