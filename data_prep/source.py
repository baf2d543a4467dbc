"""What an MSD folder lists: its tasks, and each task's pairs of image and label by dataset.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mvl_dist.errors import UserError
from mvl_dist.tasks import Task, resolve_task_name

_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Pair:
    """A case as listed; the files themselves have not been opened."""

    name: str
    root: Path
    image: Path
    label: Path


def case_name(path: str) -> str:
    """`imagesTr/hippocampus_001.nii.gz` -> `hippocampus_001`; '' if the file is no NIfTI."""
    name = PurePosixPath(path).name
    return next((name.removesuffix(end) for end in _ENDINGS if name.lower().endswith(end)), "")


def task_folders(msd_root: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Folders of the tasks asked for, or of all under `msd_root`; a task's own folder does too.

    Raises:
        UserError: no such folder, nothing in it, or a task that it does not hold.
    """
    root = msd_root.resolve()
    if not root.is_dir():
        raise UserError(
            f"{msd_root}: no such folder; --msd-root takes the folder that holds Task04_Hippocampus"
            " and its like ('mvl phantom --msd-root DIR' makes synthetic ones)"
        )
    if (root / "dataset.json").exists():
        folders = {root.name: root}
    else:
        folders = {
            path.name: path
            for path in sorted(root.iterdir())
            if not path.name.startswith(".")
            and ((path / "dataset.json").exists() or (path / "imagesTr").is_dir())
        }
    if not folders:
        raise UserError(
            f"{msd_root}: holds no MSD task (a folder with dataset.json, imagesTr, labelsTr); "
            "unpack the archives with 'mvl unpack ARCHIVE... --msd-root DIR'"
        )
    names = [resolve_task_name(name, tuple(folders)) for name in wanted] or list(folders)
    return [folders[name] for name in dict.fromkeys(names)]


def _inside(folder: Path, entry: object, where: str) -> Path:
    """Path of a listed file, refused if it leaves the task's folder."""
    if not isinstance(entry, str) or not case_name(entry):
        raise UserError(f"{where}: {entry!r} is not the path of a .nii.gz file; mend dataset.json")
    listed = PurePosixPath(entry)
    path = folder / listed
    leaves = listed.is_absolute() or ".." in listed.parts
    if leaves or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: '{entry}' leaves the task's folder; mend dataset.json")
    return path


def list_pairs(folder: Path, dataset: dict[str, object]) -> list[Pair]:
    """The labelled cases of a task, in the order of dataset.json, never of the directory.

    Entries that start with `._` (macOS puts such files into archives) are passed over.

    Raises:
        UserError: malformed, empty or contradictory list.
    """
    where = str(folder / "dataset.json")
    entries = dataset.get("training")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: 'training' must be a list of {{'image': ..., 'label': ...}}")
    pairs: dict[str, Pair] = {}
    for number, entry in enumerate(entries):
        if PurePosixPath(str(entry.get("image", ""))).name.startswith("._"):
            continue
        place = f"{where}: training[{number}]"
        image = _inside(folder, entry.get("image"), place)
        label = _inside(folder, entry.get("label"), place)
        name = case_name(image.name)
        if name.startswith(".") or not name.isprintable():
            raise UserError(f"{place}: {name!r} cannot name a case; rename the file")
        if name in pairs:
            raise UserError(f"{where}: case {name} is listed twice; remove one entry")
        pairs[name] = Pair(name, folder, image, label)
    labels = [pair.label for pair in pairs.values()]
    if len(set(labels)) != len(labels):
        twice = next(path for path in labels if labels.count(path) > 1)
        raise UserError(f"{where}: label {twice.name} is listed for two cases; mend the list")
    if not pairs:
        raise UserError(f"{where}: 'training' lists no case")
    return list(pairs.values())


def _unlisted_images(folder: Path, pairs: Sequence[Pair]) -> list[str]:
    """Images on disk that dataset.json does not list, without macOS's `._` files."""
    known = {pair.image.name for pair in pairs}
    return sorted(
        path.name
        for path in (folder / "imagesTr").glob("*.nii*")
        if not path.name.startswith(".") and path.name not in known
    )


def remarks(task: Task, dataset: dict[str, object], pairs: Sequence[Pair]) -> list[str]:
    """What a person should know of the list though it can be converted as it is."""
    notes = []
    announced = dataset.get("numTraining")
    if announced != len(pairs):
        notes.append(f"dataset.json lists {len(pairs)} cases but says numTraining {announced}")
    if task.num_training and task.num_training != len(pairs):
        notes.append(f"{len(pairs)} of the {task.num_training} cases that were released")
    unlisted = _unlisted_images(pairs[0].root, pairs)
    if unlisted:
        shown = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
        notes.append(f"{len(unlisted)} images that dataset.json does not list: {shown}")
    return notes
