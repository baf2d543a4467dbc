"""What is scored: each label as MSD does, their union as the paper does, and a task's own unions.

A model marks some regions (`--target`); more can be scored from what it marks:

    --target   label (MSD)   foreground (paper)   union (extras)
    binary     no            yes                  no
    labels     yes           yes                  yes
    regions    yes           yes                  yes
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mvl_dist.store import regions_of
from mvl_dist.tasks import Task

Kind = Literal["label", "foreground", "union"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ScoredRegion:
    """One line of a table.

    Attributes:
        kind: `label` is what MSD scores, `foreground` what the paper does, `union` an extra.
        labels: label values of the reference.
        outputs: the model's regions whose union is the prediction.
    """

    name: str
    kind: Kind
    labels: tuple[int, ...]
    outputs: tuple[int, ...]


def scored_regions(task: Task, target: str) -> tuple[ScoredRegion, ...]:
    """The regions that a model trained for a target can be scored in.

    Where the model marks exactly these labels itself, its own mask is scored; else the union of its
    masks of the single labels.
    """
    marked = [region.labels for region in regions_of(task, target)]

    def outputs(labels: Sequence[int]) -> tuple[int, ...]:
        if tuple(labels) in marked:
            return (marked.index(tuple(labels)),)
        return tuple(marked.index((label,)) for label in labels)

    wanted: list[tuple[Kind, str, tuple[int, ...]]] = []
    if target != "binary":
        wanted += [("label", region.name, region.labels) for region in task.label_regions]
    if task.foreground.name not in [name for _, name, _ in wanted]:
        wanted.append(("foreground", task.foreground.name, task.foreground.labels))
    if target != "binary":
        wanted += [("union", region.name, region.labels) for region in task.union_regions]
    return tuple(ScoredRegion(name, kind, labels, outputs(labels)) for kind, name, labels in wanted)


def pairs_to_score(
    regions: Iterable[ScoredRegion], predicted: Mask, reference: npt.NDArray[np.uint8]
) -> Mapping[str, tuple[Mask, Mask]]:
    """Predicted and reference mask of every region, by its name.

    Args:
        predicted: (R, D, H, W), one mask for each region that the model marks.
        reference: (D, H, W) label values.
    """
    return {
        region.name: (
            _union(predicted[index] for index in region.outputs),
            _union(reference == value for value in region.labels),
        )
        for region in regions
    }


def _union(masks: Iterable[Mask]) -> Mask:
    return functools.reduce(np.logical_or, masks)
