"""What `--augmentation` names: functions of a batch, and with which probability each step acts.

A step is one call for all samples of a batch that it is drawn for. A new transform of values is a
function in intensity.py and a line in STRONG.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvl_dist.augment import intensity
from mvl_dist.augment.affine import Seed, coarse_axis, move, paper_map, resample, strong_map
from mvl_dist.augment.batch import rows, sent
from mvl_dist.tasks import AXES, Task

Transform = Callable[[Tensor, Sequence[np.random.Generator], int | None], None]


# Values that a step changes in one call, at most: noise takes 24 bytes for each on its way.
_VALUES_AT_ONCE = 1 << 27


@dataclass(frozen=True)
class Step:
    """A transform of values and the probability that it is applied to a sample."""

    probability: float
    transform: Transform


# nnunetv2 2.8.1, nnUNetTrainer.get_training_transforms, in its order.
STRONG = (
    Step(0.1, intensity.gaussian_noise),
    Step(0.2, intensity.gaussian_blur),
    Step(0.15, intensity.brightness),
    Step(0.15, intensity.contrast),
    Step(0.25, intensity.low_resolution),
    Step(0.1, intensity.inverted_gamma),
    Step(0.3, intensity.gamma),
)


@dataclass(frozen=True)
class Anatomy:
    """What of a task decides how far its samples may be changed.

    Attributes:
        spacing_mm: size of the samples' voxels along D, H, W.
        mirror_axes: axes that may be mirrored, 0 to 2 for D, H, W.
        keeps_background: voxels at the lowest value of every channel (MRI's stripped background)
            stay as they are, as nnU-Net's outside of the mask does.
        continues: the samples are crops, whose masks go on beyond the edge as the image does; a
            whole scan's end there.
    """

    spacing_mm: tuple[float, float, float]
    mirror_axes: tuple[int, ...] = ()
    keeps_background: bool = False
    continues: bool = False

    @classmethod
    def of(
        cls, task: Task, spacing_mm: tuple[float, float, float], *, continues: bool = False
    ) -> Anatomy:
        """A task's, on voxels of this size."""
        axes = tuple(AXES.index(axis) for axis in task.mirror_axes)
        return cls(spacing_mm, axes, task.intensity == "mri", continues)


def paper(
    image: Tensor, target: Tensor, seeds: Sequence[Seed], anatomy: Anatomy
) -> tuple[Tensor, Tensor]:
    """The paper's: rotation by up to 5 degrees and scaling by 0.9 to 1.1, in voxels of the grid.

    Args:
        image: (B, C, D, H, W), any float dtype.
        target: (B, R, D, H, W) of 0 and 1.
        seeds: (seed, epoch, position in the epoch's order) of each sample: what it depends on.

    Returns:
        Image as float32 and target as float32 of 0 and 1.
    """
    maps = [paper_map(image.shape[2:], seed) for seed in seeds]
    return resample(image, target, maps, continues=anatomy.continues)


def strong(
    image: Tensor,
    target: Tensor,
    seeds: Sequence[Seed],
    anatomy: Anatomy,
    steps: Sequence[Step] = STRONG,
) -> tuple[Tensor, Tensor]:
    """nnU-Net's default set, mirrored only where the task's anatomy allows.

    Rotation, scale and mirroring are one resampling; samples for which none was drawn, or mirroring
    alone, are not resampled. Arguments and results as for `paper`.
    """
    # Copies, so that the caller's batch stays whole.
    image, target = (
        part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for part in (image, target)
    )
    shape, spacing_mm = image.shape[2:], anatomy.spacing_mm
    drawn = [
        strong_map(shape, spacing_mm, anatomy.mirror_axes, _generator(seed, "affine"))
        for seed in seeds
    ]
    maps = {row: found for row, found in enumerate(drawn) if found is not None}
    move(image, target, maps, continues=anatomy.continues)
    _change_values(image, seeds, anatomy, steps)
    return image, target


def _change_values(
    image: Tensor, seeds: Sequence[Seed], anatomy: Anatomy, steps: Sequence[Step]
) -> None:
    """Apply to each sample of (B, C, D, H, W) the steps that are drawn for it, in place."""
    drawn = [_drawn(seeds, step) for step in steps]
    changed = {row for generators in drawn for row in generators}
    if not changed:
        return
    if anatomy.keeps_background:
        background, lowest = _background(image)
    coarse = coarse_axis(anatomy.spacing_mm)
    at_once = max(1, _VALUES_AT_ONCE // image[0].numel())
    for step, generators in zip(steps, drawn, strict=True):
        chosen, theirs = list(generators), list(generators.values())
        for start in range(0, len(chosen), at_once):
            part = slice(start, start + at_once)
            with rows(image, chosen[part]) as samples:
                step.transform(samples, theirs[part], coarse)
    if anatomy.keeps_background:
        touched = np.array([row in changed for row in range(len(seeds))])
        background &= sent(touched, image.device).view(-1, 1, 1, 1, 1)
        torch.where(background, lowest, image, out=image)


def _drawn(seeds: Sequence[Seed], step: Step) -> dict[int, np.random.Generator]:
    """The samples that a step is drawn for, and the random numbers that each goes on with."""
    generators = {row: _generator(seed, step.transform.__name__) for row, seed in enumerate(seeds)}
    return {
        row: generator
        for row, generator in generators.items()
        if generator.random() < step.probability
    }


def _background(image: Tensor) -> tuple[Tensor, Tensor]:
    """Where every channel has its lowest value, (B, 1, D, H, W) bool; these, (B, C, 1, 1, 1)."""
    lowest, highest = (part((2, 3, 4), keepdim=True) for part in (image.amin, image.amax))
    # A resampled constant is off by rounding.
    reach = 1e-4 * (highest - lowest)
    return (image <= lowest + reach).all(1, keepdim=True), lowest


def _generator(seed: Seed, name: str) -> np.random.Generator:
    """Random numbers of one sample for one step: a step more or less leaves the others alone."""
    return np.random.Generator(np.random.PCG64([*seed, zlib.crc32(name.encode())]))


def none(
    image: Tensor, target: Tensor, seeds: Sequence[Seed], anatomy: Anatomy
) -> tuple[Tensor, Tensor]:
    """The batch as it is."""
    return image, target


Preset = Callable[[Tensor, Tensor, Sequence[Seed], Anatomy], tuple[Tensor, Tensor]]
PRESETS: Mapping[str, Preset] = {"paper": paper, "strong": strong, "none": none}
