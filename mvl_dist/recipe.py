"""How a scan becomes a model's input and its logits a mask: all of it, without the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mvl_dist.config import RunConfig
from mvl_dist.store import regions_of
from mvl_dist.tasks import Region, Task, task_from_plain


@dataclass(frozen=True)
class Recipe:
    """What a trained model needs in order to meet a new scan as it met its training cases.

    Attributes:
        normalisation: the store's, applied to the raw intensities before resampling.
        spacing_mm: size of the model's voxels along D, H, W: at the grid the median over the task's
            cases, with `resolution` spaced the task's spacing, which a scan is resampled to.
    """

    config: RunConfig
    task: Task
    normalisation: Mapping[str, Any]
    spacing_mm: tuple[float, float, float]

    @property
    def regions(self) -> tuple[Region, ...]:
        """One output channel of the model each."""
        return tuple(regions_of(self.task, self.config.data.target))

    @property
    def out_channels(self) -> int:
        """Logits a voxel: the regions, and the background class of a softmax."""
        return len(self.regions) + (self.config.model.activation == "softmax")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Input channels of the model."""
        return self.task.modalities[: 1 if self.config.data.channels == "first" else None]

    def to_plain(self) -> dict[str, Any]:
        """What a run's folder keeps beside its config."""
        return {
            "task": asdict(self.task),
            "normalisation": dict(self.normalisation),
            "spacing_mm": list(self.spacing_mm),
        }


def recipe_from_plain(plain: Mapping[str, Any], config: RunConfig) -> Recipe:
    """The inverse of `Recipe.to_plain`.

    Raises:
        KeyError, TypeError, ValueError: something else than that wrote it.
    """
    d, h, w = (float(size) for size in plain["spacing_mm"])
    return Recipe(config, task_from_plain(plain["task"]), dict(plain["normalisation"]), (d, h, w))
