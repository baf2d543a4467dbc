"""Our regions in nnU-Net's terms: its `labels`, its `regions_class_order`, its label values.

nnU-Net wants label values 1..n without a gap. It trains label by label (softmax, one class a label)
unless an entry of `labels` lists several values; then every entry is a region of its own (sigmoid)
that may overlap others. A prediction is a label map all the same: the regions are painted into it
in the order of `labels`, each in its value of `regions_class_order`, the later over the earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mvl_dist.store import regions_of
from mvl_dist.tasks import Region, Task

# Keys of `labels` that mean something else to nnU-Net than a region of that name.
_RESERVED = ("background", "ignore")


@dataclass(frozen=True)
class Labels:
    """What dataset.json says of labels.

    Attributes:
        entries: `labels` of dataset.json.
        class_order: `regions_class_order`, empty where no regions are trained.
        values: (label value of the task, label value in nnU-Net's files).
    """

    entries: dict[str, int | list[int]]
    class_order: tuple[int, ...]
    values: tuple[tuple[int, int], ...]


def labels_for(task: Task, target: str) -> Labels:
    """Say a task's regions in nnU-Net's terms.

    For `regions`, unions come first, the largest first, then the labels by value, so that what lies
    inside is painted over what encloses it: MSD numbers its labels from the outside in. A union is
    painted in the value that no smaller union of it has: `whole tumour` (1, 2, 3) around
    `tumour core` (2, 3) leaves 1, the edema.
    """
    regions = list(regions_of(task, target))
    if target == "binary":
        values = tuple((value, 1) for value in task.foreground.labels)
        return Labels({"background": 0, regions[0].name: 1}, (), values)
    values = tuple((value, number) for number, (value, _) in enumerate(sorted(task.labels), 1))
    theirs = dict(values)
    regions.sort(key=lambda region: (-len(region.labels), min(region.labels)))
    entries: dict[str, int | list[int]] = {"background": 0}
    order = []
    for region in regions:
        numbers = [theirs[value] for value in region.labels]
        name = _name(region, entries)
        entries[name] = numbers[0] if len(numbers) == 1 else numbers
        order.append(theirs[_outermost(region, regions)])
    overlapping = any(len(region.labels) > 1 for region in regions)
    return Labels(entries, tuple(order) if overlapping else (), values)


def _name(region: Region, taken: dict[str, int | list[int]]) -> str:
    """A name that nnU-Net neither reserves nor has already."""
    if region.name in _RESERVED or region.name in taken:
        return f"{region.name} ({', '.join(map(str, region.labels))})"
    return region.name


def _outermost(region: Region, regions: Sequence[Region]) -> int:
    inside = {
        value
        for other in regions
        if 1 < len(other.labels) < len(region.labels) and set(other.labels) < set(region.labels)
        for value in other.labels
    }
    return min(set(region.labels) - inside or set(region.labels))
