"""One NIfTI file read to its last byte, checked, and brought to one orientation and back.

The converter and the prediction read scans by these functions alone, so that a model meets at
prediction what it was trained on. Every defect is a UserError of one line that names the file, the
reason and the mending.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from mvl_dist.errors import UserError

FETCH_AGAIN = "fetch the file again"
REPAIR = "repair the file"

# Two files count as one grid if no corner of the volume lies further apart than this. Two
# headers of one scan differ by float32 rounding (about 1e-4 mm at 500 mm from the origin); a
# hundredth of a voxel is far above that and far below anything a label can express.
ALIGNED_MM = 1e-3
ALIGNED_VOXELS = 1e-2

Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Orientation:
    """How a file's voxels become D, H, W of the RAS+ orientation (see store/format.py), and back.

    Attributes:
        turn: (3, 2), nibabel's orientation of the file's axes.
        affine: 4x4, from voxel (w, h, d) to RAS+ millimetres.
        codes: of the file, e.g. `LPS`.
    """

    turn: npt.NDArray[np.float64]
    affine: npt.NDArray[np.float64]
    codes: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along D, H, W."""
        w, h, d = (float(s) for s in np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))
        return d, h, w

    def canonical_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Shape (x, y, z) of the file -> that of `canonical`."""
        w, h, d = (int(size) for _, size in sorted(zip(self.turn[:, 0], shape, strict=True)))
        return d, h, w

    def canonical(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(x, y, z) of the file -> (D, H, W), and (x, y, z, c) -> (C, D, H, W)."""
        return np.ascontiguousarray(self.canonical_view(values))

    def canonical_view(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As `canonical`, without a copy where the file's rows run along W already."""
        view = nib.orientations.apply_orientation(values, self.turn).T
        return view if abs(view.strides[-1]) == view.itemsize else np.ascontiguousarray(view)

    def as_filed(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse of `canonical`: (D, H, W) -> (x, y, z), (C, D, H, W) -> (x, y, z, c)."""
        back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], self.turn)
        return np.asarray(nib.orientations.apply_orientation(values.T, back))


def orientation_of(affine: npt.NDArray[np.float64], shape: Sequence[int]) -> Orientation:
    """Orientation of a file with this affine and shape (x, y, z)."""
    turn = nib.orientations.io_orientation(affine)
    canonical = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    return Orientation(turn, canonical, "".join(nib.aff2axcodes(affine)))


def states_orientation(image: nib.Nifti1Image) -> bool:
    """Whether a header says where the voxels lie; if both its codes are 0 nibabel assumes it."""
    return bool(image.header["qform_code"] or image.header["sform_code"])


def _decompress(path: Path, data: bytes) -> bytes:
    if data[:2] != b"\x1f\x8b":
        if path.name.lower().endswith(".gz"):
            raise UserError(f"{path}: not a gzip file; {FETCH_AGAIN}")
        return data
    try:
        return _gunzip(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "truncated" if isinstance(error, EOFError) else "damaged"
        raise UserError(f"{path}: {what} gzip file ({error}); {FETCH_AGAIN}") from error


def _gunzip(data: bytes) -> bytes:
    """The content of a gzip file; ISA-L takes under half of zlib's time and checks the CRC as well.

    Raises:
        EOFError, zlib.error, gzip.BadGzipFile: as gzip.decompress, which reads whatever is not one
            whole member.
    """
    size = int.from_bytes(data[-4:], "little")  # of the content, modulo 4 GB
    reader = isal_zlib.decompressobj(wbits=31)
    try:
        content = reader.decompress(data, size + 1)
    except isal_zlib.error:  # type: ignore[misc]  # its stub does not say that it is an error
        return gzip.decompress(data)
    whole = reader.eof and not reader.unused_data and len(content) == size
    return content if whole else gzip.decompress(data)


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


def raw_voxels(image: nib.Nifti1Image) -> npt.NDArray[Any]:
    """Voxels (x, y, z) or (x, y, z, c) of an image that `parse_nifti` gave, as its header means.

    They are the file's own bytes, not copied and read-only, where the header does not scale them.
    """
    dtype = image.header.get_data_dtype()
    proxy = image.dataobj
    if (proxy.slope, proxy.inter) != (1, 0):
        return np.asanyarray(proxy)
    content = image.file_map["image"].fileobj.getbuffer()
    voxels = np.frombuffer(content, dtype, count=int(np.prod(image.shape)), offset=proxy.offset)
    return voxels.reshape(image.shape, order="F")


def read_voxels(path: Path, image: nib.Nifti1Image, modalities: Sequence[str]) -> npt.NDArray[Any]:
    """Voxels (x, y, z, c) of a file that holds these channels, as its header means.

    Their type is the file's, which float32 holds as well as it can, or float32 where the header
    scales them.

    Raises:
        UserError: another number of channels, or a voxel that is NaN or infinite.
    """
    channels = len(modalities)
    shape = image.shape if len(image.shape) > 3 else (*image.shape, 1)
    if len(shape) != 4 or shape[3] != channels:
        raise UserError(
            f"{path}: shape {image.shape} does not hold the {channels} channel"
            f"{'s' if channels > 1 else ''} of the task "
            f"({', '.join(modalities)}); {REPAIR}"
        )
    values = raw_voxels(image).reshape(shape, order="F")
    if values.dtype.itemsize > 4 or image.dataobj.slope != 1 or image.dataobj.inter != 0:
        values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    # A NaN makes both extremes NaN; no mask as large as the scan.
    if values.dtype.kind == "f" and not np.isfinite([values.min(), values.max()]).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise UserError(f"{path}: {bad} voxels are NaN or infinite; {REPAIR}")
    return values


def read_channels(
    path: Path, image: nib.Nifti1Image, modalities: Sequence[str]
) -> npt.NDArray[np.float32]:
    """`read_voxels` as float32."""
    return read_voxels(path, image, modalities).astype(np.float32, copy=False)


def apart_mm(first: nib.Nifti1Image, second: nib.Nifti1Image) -> float:
    """How far two files of one shape lie apart at most; 0 where the difference is rounding."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.shape[:3]])).reshape(3, -1)
    apart = first.affine[:3] - second.affine[:3]
    distance = np.linalg.norm(apart[:, :3] @ corners + apart[:, 3:], axis=0).max()
    spacing = np.sqrt((first.affine[:3, :3] ** 2).sum(axis=0)).min()
    return float(distance) if distance > ALIGNED_MM + ALIGNED_VOXELS * spacing else 0.0
