"""What one process does with one case: look at it (CT statistics), or convert it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.foreground import sample_foreground
from data_prep.intensity import Histogram, channel_statistics, hu_histogram
from data_prep.nifti import Scan, read_scan
from data_prep.source import Pair
from mvl_dist.errors import UserError
from mvl_dist.files import write_text_atomically
from mvl_dist.intensity import Scale, scale_of
from mvl_dist.label_resampling import resample_labels
from mvl_dist.resample import image_resampler, shape_at
from mvl_dist.store import (
    SEAL,
    CaseArrays,
    Shape3D,
    SpacedArrays,
    Spacing,
    seal_holds,
    sealed_json,
    write_case,
)
from mvl_dist.tasks import Task

# Normalises a volume (D0, H0, W0) and resamples it to each of some arrays (D, H, W).
Fill = Callable[[npt.NDArray[Any], Scale, Sequence[npt.NDArray[np.float16]]], None]

STATISTICS = ".statistics"
# Of uint16, which foreground_spaced is.
MOST_VOXELS_AN_AXIS = 2**16 - 1


@dataclass(frozen=True)
class Job:
    """A case to look at (`normalisation` None) or to convert; sent to another process.

    Attributes:
        settings: what all cases of a task have in common; kept in the case's attributes.
        spacing_mm: the task's spacing; None for no arrays at it.
        on_gpu: images are resampled on the GPU that data_prep/gpu.py gave the process. No setting:
            the arrays are the same.
    """

    pair: Pair
    task: Task
    store: Path
    grid: Shape3D
    settings: Mapping[str, Any]
    normalisation: Mapping[str, Any] | None = None
    spacing_mm: Spacing | None = None
    on_gpu: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a job. `bad` is empty, or says why the case cannot be used."""

    name: str
    bad: str = ""
    read_bytes: int = 0
    raw_bytes: int = 0
    oriented: bool = True


def sources_unchanged(pair: Pair, recorded: object) -> bool:
    """Whether both files are those recorded: by size and time, or else by their checksum."""
    for role, path in (("image", pair.image), ("label", pair.label)):
        try:
            known = recorded[role]  # type: ignore[index]
            status = path.stat()
            if known["name"] != path.relative_to(pair.root).as_posix():
                return False
            if status.st_size != known["bytes"]:
                return False
            if status.st_mtime_ns != known["mtime_ns"]:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != known["sha256"]:
                        return False
        except (KeyError, TypeError, OSError):
            return False
    return True


def _read(job: Job) -> Scan | Outcome:
    try:
        return read_scan(job.pair, job.task)
    except UserError as error:
        return Outcome(job.pair.name, bad=str(error))


def _done(scan: Scan) -> Outcome:
    read = sum(source.bytes for source in scan.sources.values())
    return Outcome(scan.name, read_bytes=read, raw_bytes=scan.raw_bytes, oriented=scan.oriented)


def _statistics_file(job: Job) -> Path:
    return job.store / job.task.name / STATISTICS / f"{job.pair.name}.json"


def _surveyed_settings(job: Job) -> dict[str, Any]:
    """The settings, but for the spacing, which the histogram does not depend on."""
    return {key: value for key, value in job.settings.items() if key != "spacing"}


def survey(job: Job) -> Outcome:
    """Check a CT case and leave the histogram of its labelled voxels beside the store's cases."""
    scan = _read(job)
    if isinstance(scan, Outcome):
        return scan
    histogram = hu_histogram(scan.image, scan.label)
    content = {
        "settings": _surveyed_settings(job),
        "sources": {role: asdict(source) for role, source in scan.sources.items()},
        "hu": list(histogram),
        "counts": list(histogram.values()),
    }
    write_text_atomically(_statistics_file(job), sealed_json(content))
    return _done(scan)


def surveyed(job: Job) -> Histogram | None:
    """The histogram that `survey` left, or None if there is none of these files and settings."""
    try:
        data = _statistics_file(job).read_bytes()
        content = json.loads(data)
        if not seal_holds(data, content.get(SEAL)):
            return None
        if content["settings"] != _surveyed_settings(job):
            return None
        if not sources_unchanged(job.pair, content["sources"]):
            return None
        return dict(zip(content["hu"], content["counts"], strict=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def convert(job: Job) -> Outcome:
    """Read, normalise, resample and write a case; nothing half-written is left by any failure.

    Raises:
        UserError: the store cannot be written to, or the GPU cannot be used. A bad case is an
            outcome, not an exception.
    """
    scan = _read(job)
    if isinstance(scan, Outcome):
        return scan
    assert job.normalisation is not None
    scan = replace(scan, label=np.ascontiguousarray(scan.label))
    statistics = channel_statistics(scan.image, scan.label, job.task.intensity)
    moments = zip(statistics["mean"], statistics["std"], strict=True)
    scales = [scale_of(job.normalisation, channel) for channel in moments]
    shapes = [job.grid]
    if job.spacing_mm is not None:
        shapes.append(_spaced_shape(scan, job.spacing_mm))
    image, *finer = _resampled(scan.image, scales, shapes, _fill_of(job))
    # Its memory is as large as what is made next.
    scan = replace(scan, image=scan.image[:0].copy())
    label, *finer_labels = resample_labels(scan.label, shapes)
    spaced = None
    if finer:
        foreground = sample_foreground(finer_labels[0], scan.name)
        spaced = SpacedArrays(finer[0], finer_labels[0], foreground)
    arrays = CaseArrays(image=image, label=label, label_native=scan.label, spaced=spaced)
    info = {
        "name": scan.name,
        "spacing_mm": scan.spacing_mm,
        "native_shape": scan.native_shape,
        "affine": scan.affine,
        "source_orientation": scan.source_orientation,
        "source_affine": scan.source_affine,
        "intensity": statistics,
        "sources": {role: asdict(source) for role, source in scan.sources.items()},
        "spaced_shape": spaced.label_spaced.shape if spaced is not None else None,
    }
    attributes = {
        "settings": job.settings,
        "normalisation": job.normalisation,
        "spacing_mm": job.spacing_mm,
        "info": info,
    }
    write_case(job.store, job.task.name, scan.name, arrays, attributes)
    return _done(scan)


def _spaced_shape(scan: Scan, spacing_mm: Spacing) -> Shape3D:
    """Shape of a scan at the task's spacing.

    Raises:
        UserError: more voxels along an axis than `foreground_spaced` can name.
    """
    shape = shape_at(scan.native_shape, scan.spacing_mm, spacing_mm)
    if max(shape) > MOST_VOXELS_AN_AXIS:
        raise UserError(
            f"case {scan.name} would have {'x'.join(map(str, shape))} voxels at a spacing of "
            f"{' '.join(f'{mm:g}' for mm in spacing_mm)} mm, at most {MOST_VOXELS_AN_AXIS} an axis "
            "are stored: set a coarser --spacing (millimetres along D, H, W), or none"
        )
    return shape


def _fill_of(job: Job) -> Fill:
    if not job.on_gpu:
        return _fill
    from data_prep.gpu import fill_on_gpu  # imports torch, which takes seconds

    return fill_on_gpu


def _fill(volume: npt.NDArray[Any], scale: Scale, outs: Sequence[npt.NDArray[np.float16]]) -> None:
    """On the CPU: each plane is read once."""
    resamplers = [image_resampler(volume.shape, out) for out in outs]
    for plane in volume:
        normalised = scale.apply(plane)
        for resampler in resamplers:
            resampler.push(normalised)


def _resampled(
    image: npt.NDArray[Any], scales: Sequence[Scale], shapes: Sequence[Shape3D], fill: Fill
) -> list[npt.NDArray[np.float16]]:
    """Normalise (C, D, H, W) and resample it to several shapes, channel by channel."""
    arrays = [np.empty((len(image), *shape), np.float16) for shape in shapes]
    for channel, (volume, scale) in enumerate(zip(image, scales, strict=True)):
        fill(volume, scale, [array[channel] for array in arrays])
    return arrays
