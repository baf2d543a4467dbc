"""The ten tasks of the Medical Segmentation Decathlon as data, and any other task from its JSON.

Labels, channel order and case counts are those of the released `dataset.json` files; the paper's
Table 1 differs for Liver (100) and Lung (53). Tolerances: Antonelli et al., Nat Commun 13:4128
(2022), one value per task for all its labels.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvl_dist.errors import UserError

Intensity = Literal["mri", "ct"]
AXES = ("D", "H", "W")


@dataclass(frozen=True)
class Region:
    """A set of label values that is scored as one binary mask."""

    name: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What a segmentation task is, apart from its cases.

    Attributes:
        name: folder name, e.g. `Task04_Hippocampus`.
        modalities: one name a channel, in file order.
        labels: (value, name) of every foreground label.
        intensity: `mri` is normalised per case and channel, `ct` by the task's HU statistics.
        tolerance_mm: tolerance of the normalised surface Dice.
        num_training: labelled cases as released (0: not known).
        union_regions: regions that users ask for beside MSD's one region per label.
        mirror_axes: axes (of D, H, W) along which a mirrored case could be another patient's:
            `--augmentation strong` mirrors along them.
        source: where the table's row comes from.
    """

    name: str
    modalities: tuple[str, ...]
    labels: tuple[tuple[int, str], ...]
    intensity: Intensity
    tolerance_mm: float
    num_training: int = 0
    union_regions: tuple[Region, ...] = ()
    mirror_axes: tuple[str, ...] = ()
    source: str = "Medical Segmentation Decathlon, CC BY-SA 4.0"

    @property
    def label_regions(self) -> tuple[Region, ...]:
        """One region per label value: what MSD scores."""
        return tuple(Region(name, (value,)) for value, name in self.labels)

    @property
    def foreground(self) -> Region:
        """All labels merged: what the paper scores."""
        return Region("foreground", tuple(value for value, _ in self.labels))


def _task(
    name: str,
    modalities: str,
    labels: str,
    tolerance_mm: float,
    num_training: int,
    unions: tuple[Region, ...] = (),
    mirror_axes: tuple[str, ...] = (),
) -> Task:
    channels = tuple(modalities.split(","))
    return Task(
        name=name,
        modalities=channels,
        labels=tuple(enumerate(labels.split(","), start=1)),
        intensity="ct" if channels == ("CT",) else "mri",
        tolerance_mm=tolerance_mm,
        num_training=num_training,
        union_regions=unions,
        mirror_axes=mirror_axes,
    )


# Each with the reason for its mirror axes: W swaps left and right.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task(
            "Task01_BrainTumour",
            "FLAIR,T1w,t1gd,T2w",
            "edema,non-enhancing tumor,enhancing tumour",
            5.0,
            484,
            (Region("whole tumour", (1, 2, 3)), Region("tumour core", (2, 3))),
            mirror_axes=("W",),  # a tumour grows in either half of the brain
        ),
        # Mirrored, the label would lie where the right atrium is.
        _task("Task02_Heart", "MRI", "left atrium", 4.0, 20),
        # The liver lies right.
        _task("Task03_Liver", "CT", "liver,cancer", 7.0, 131, (Region("whole liver", (1, 2)),)),
        _task(
            "Task04_Hippocampus",
            "MRI",
            "Anterior,Posterior",
            1.0,
            260,
            (Region("whole hippocampus", (1, 2)),),
            mirror_axes=("W",),  # a pair; H would swap the labels anterior and posterior
        ),
        _task(
            "Task05_Prostate",
            "T2,ADC",
            "PZ,TZ",
            4.0,
            32,
            (Region("whole prostate", (1, 2)),),
            mirror_axes=("W",),  # alike left and right; PZ lies behind TZ
        ),
        _task(
            "Task06_Lung",
            "CT",
            "cancer",
            2.0,
            63,
            mirror_axes=("W",),  # a tumour grows in either lung, whatever side the heart is on
        ),
        # Its head lies right, its tail left.
        _task(
            "Task07_Pancreas",
            "CT",
            "pancreas,cancer",
            5.0,
            281,
            (Region("whole pancreas", (1, 2)),),
        ),
        # The vessels branch as the liver lies.
        _task("Task08_HepaticVessel", "CT", "Vessel,Tumour", 3.0, 303),
        # The spleen lies left.
        _task("Task09_Spleen", "CT", "spleen", 3.0, 41),
        # The colon rises right and descends left.
        _task("Task10_Colon", "CT", "colon cancer primaries", 4.0, 126),
    )
}


def resolve_task_name(name: str, known: tuple[str, ...] = tuple(TASKS)) -> str:
    """Return the full name for `Task04_Hippocampus`, `Task04`, `04`, `4` or `hippocampus`.

    Raises:
        UserError: no known task, or more than one, goes by that name.
    """
    wanted = name.strip().lower()
    short = f"task{int(wanted):02d}" if wanted.isdigit() else wanted
    matches = [
        task
        for task in known
        if task.lower() == wanted or short in (task.lower().split("_")[0], task.lower()[7:])
    ]
    if len(matches) == 1:
        return matches[0]
    lowered = {task.lower(): task for task in known}
    near = [lowered[low] for low in difflib.get_close_matches(wanted, lowered, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    raise UserError(f"unknown task '{name}': {hint}")


def stand_in_name(task: str) -> str:
    """Name of the synthetic task with another task's channels and labels."""
    number, _, name = task.partition("_")
    return task if name.startswith("Phantom") else f"{number}_Phantom{name}"


def task_from_json(dataset: dict[str, object], folder: Path) -> Task:
    """Read a task that is not one of the ten from its own `dataset.json` (already parsed).

    The intensity scheme is `ct` where the only modality is CT. MSD publishes no tolerance for such
    a task, so 1 mm is used unless the file says `"tolerance_mm"`. Regions that overlap are read
    from `"regions": {"whole lesion": [1, 2]}`, axes that augmentation may mirror from
    `"mirror_axes": ["W"]` (none unless said).

    Raises:
        UserError: `modality` or `labels` is missing, or something is malformed.
    """
    path = folder / "dataset.json"
    try:
        modality = dict(dataset["modality"])  # type: ignore[call-overload]
        labels = dict(dataset["labels"])  # type: ignore[call-overload]
        channels = tuple(str(modality[key]) for key in sorted(modality, key=int))
        foreground = tuple(
            sorted((int(value), str(name)) for value, name in labels.items() if int(value) != 0)
        )
        tolerance_mm = float(dataset.get("tolerance_mm", 1.0))  # type: ignore[arg-type]
        unions = tuple(
            Region(str(name), tuple(int(value) for value in values))
            for name, values in dict(dataset.get("regions", {})).items()  # type: ignore[call-overload]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: needs 'modality' and 'labels' as objects from a number to a name, "
            f'as in {{"modality": {{"0": "MRI"}}, "labels": {{"0": "background", "1": "lesion"}}}} '
            f"({type(error).__name__}: {error})"
        ) from error
    if not channels or not foreground:
        raise UserError(f"{path}: 'modality' and 'labels' must each name at least one entry")
    values = {value for value, _ in foreground}
    for region in unions:
        if not region.labels or not set(region.labels) <= values:
            raise UserError(
                f"{path}: region '{region.name}' is made of {list(region.labels)}, the labels are "
                f"{sorted(values)}"
            )
    mirror_axes = dataset.get("mirror_axes", [])
    if not isinstance(mirror_axes, list) or any(axis not in AXES for axis in mirror_axes):
        raise UserError(
            f"{path}: 'mirror_axes' is {json.dumps(mirror_axes)}; it takes a list of axes of D "
            '(inferior to superior), H (posterior to anterior) and W (left to right), as in ["W"]'
        )
    if max(value for value, _ in foreground) > 255 or foreground[0][0] < 0:
        raise UserError(f"{path}: label values must lie in 0..255")
    return Task(
        name=folder.name,
        modalities=channels,
        labels=foreground,
        intensity="ct" if [c.upper() for c in channels] == ["CT"] else "mri",
        tolerance_mm=tolerance_mm,
        union_regions=unions,
        mirror_axes=tuple(sorted(set(mirror_axes))),
        source=str(dataset.get("reference", "dataset.json")),
    )


def task_from_plain(plain: Mapping[str, Any]) -> Task:
    """The inverse of `dataclasses.asdict`, through JSON.

    Raises:
        KeyError, TypeError, ValueError: something else than a task.
    """
    fields = dict(plain)
    known = TASKS.get(fields["name"])
    # What was written before there were mirror axes has the table's.
    fields.setdefault("mirror_axes", known.mirror_axes if known else ())
    fields["mirror_axes"] = tuple(fields["mirror_axes"])
    fields["modalities"] = tuple(fields["modalities"])
    fields["labels"] = tuple((value, name) for value, name in fields["labels"])
    fields["union_regions"] = tuple(
        Region(region["name"], tuple(region["labels"])) for region in fields["union_regions"]
    )
    return Task(**fields)


def load_task(folder: Path) -> tuple[Task, dict[str, object]]:
    """Return the task of an MSD folder and its parsed `dataset.json`.

    One of the ten is taken from the table above, after its labels were compared with the file, so
    that a renumbered copy cannot pass for the original.

    Raises:
        UserError: the file is absent, not JSON, or contradicts the table.
    """
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such task folder; --msd-root takes the folder above it")
    try:
        dataset = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; an MSD task folder holds a dataset.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch the task again") from error
    if not isinstance(dataset, dict):
        raise UserError(f"{path}: holds a {type(dataset).__name__}, not a JSON object")
    described = task_from_json(dataset, folder)
    task = TASKS.get(folder.name, described)
    if [value for value, _ in task.labels] != [value for value, _ in described.labels]:
        raise UserError(
            f"{path}: lists labels {dict(described.labels)} but {task.name} has "
            f"{dict(task.labels)}; rename the folder if it is another task"
        )
    if len(task.modalities) != len(described.modalities):
        raise UserError(
            f"{path}: lists {len(described.modalities)} channels but {task.name} has "
            f"{len(task.modalities)}; rename the folder if it is another task"
        )
    return task, dataset
