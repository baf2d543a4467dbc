"""Which of a user's files are one case.

A case is one NIfTI file with all channels, or one file a channel: CASE_0000.nii.gz and so on
(nnU-Net's names), or CASE_FLAIR.nii.gz and so on (the task's names, in capitals or not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl_dist.errors import UserError

ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """A scan to be predicted: its name, and one file, or one a channel in the task's order."""

    name: str
    files: tuple[Path, ...]

    def sources(self) -> list[dict[str, Any]]:
        """Name, size and time of each file, by which a later start knows it again."""
        found = [(path, path.stat()) for path in self.files]
        return [
            {"name": path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            for path, status in found
        ]


def find_cases(inputs: Sequence[Path], modalities: Sequence[str], wanted: int) -> list[Case]:
    """The cases among files and folders; a folder's own files count, those of its folders do not.

    Args:
        modalities: the task's channels.
        wanted: how many of them the model takes, from the first.

    Raises:
        UserError: nothing there, a channel that is missing, or two cases of one name.
    """
    files = [path for place in inputs for path in _files(place)]
    single: dict[str, Path] = {}
    split: dict[str, dict[int, Path]] = {}
    for path in dict.fromkeys(files):
        name, channel = _case_and_channel(path, modalities)
        kept: dict[Any, Path] = single if channel is None else split.setdefault(name, {})
        key = name if channel is None else channel
        if key in kept:
            raise UserError(f"{kept[key]} and {path} are both {_called(name, channel)}: move one")
        kept[key] = path
    both = sorted(single.keys() & split.keys())
    if both:
        raise UserError(
            f"{single[both[0]]} and {next(iter(split[both[0]].values()))} are both case "
            f"{both[0]}: move one"
        )
    for name, channels in split.items():
        missing = [number for number in range(wanted) if number not in channels]
        if missing:
            raise UserError(
                f"case {name}: {next(iter(channels.values())).parent} has no file of channel "
                f"{missing[0]} ({modalities[missing[0]]}), {name}_{missing[0]:04d}.nii.gz"
            )
    cases = [Case(name, (path,)) for name, path in single.items()]
    cases += [Case(name, tuple(f[n] for n in range(wanted))) for name, f in split.items()]
    return sorted(cases, key=lambda case: case.name)


def _called(name: str, channel: int | None) -> str:
    return f"case {name}" if channel is None else f"channel {channel} of case {name}"


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        files = [path for path in sorted(place.iterdir()) if _stem(path) and path.is_file()]
        if not files:
            raise UserError(f"{place}: holds no .nii.gz and no .nii file")
        return files
    if not place.is_file():
        raise UserError(f"--input {place}: no such file or folder")
    if not _stem(place):
        raise UserError(f"{place}: not a NIfTI file by its name (.nii.gz or .nii)")
    return [place]


def _stem(path: Path) -> str:
    """A file's name without its ending; '' for what is no NIfTI file, and for macOS's doubles."""
    name = path.name
    if name.startswith("."):
        return ""
    return next((name[: -len(end)] for end in ENDINGS if name.lower().endswith(end)), "")


def _case_and_channel(path: Path, modalities: Sequence[str]) -> tuple[str, int | None]:
    """Split a file's name; a number that no channel of the task has belongs to the case's name."""
    stem = _stem(path)
    name, _, last = stem.rpartition("_")
    named = {modality.lower(): number for number, modality in enumerate(modalities)}
    if name and len(last) == 4 and last.isdecimal() and int(last) < len(modalities):
        return name, int(last)
    if name and len(modalities) > 1 and last.lower() in named:
        return name, named[last.lower()]
    return stem, None
