"""One scan through trained models, to masks on its own grid: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mvl_dist.errors import UserError
from mvl_dist.inference import model_logits
from mvl_dist.intensity import normalise
from mvl_dist.labelling import label_map, mean_probability, region_logits, region_probabilities
from mvl_dist.native_grid import to_native
from mvl_dist.postprocess import largest_component
from mvl_dist.recipe import Recipe
from mvl_dist.resample import resample_image, shape_at
from mvl_dist.tasks import Region

Model = torch.nn.Module
# A logit that no region's can outvote: what a mask has lost counts as ruled out, in its unions too.
RULED_OUT = -1e6


@dataclass(frozen=True)
class Result:
    """A prediction on the scan's own grid, axes D, H, W of the RAS+ orientation.

    Attributes:
        labels: (D0, H0, W0) uint8, values of `values_of`.
        masks: (R, D0, H0, W0), each region marked by itself, as `mvl evaluate` scores it.
        probabilities: (R, D0, H0, W0) float32.
    """

    labels: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    probabilities: npt.NDArray[np.float32]


def values_of(recipe: Recipe) -> tuple[Region, ...]:
    """What a label map can hold, each with the one value that stands for it.

    For `binary` that is 1, the foreground; else the task's own labels.
    """
    if recipe.config.data.target == "binary":
        return (Region(recipe.task.foreground.name, (1,)),)
    return recipe.task.label_regions


def contains(recipe: Recipe) -> torch.Tensor:
    """(L, R): 1 where a value of `values_of` is part of a region of the model."""
    if recipe.config.data.target == "binary":
        return torch.ones(1, 1)
    rows = [
        [float(value.labels[0] in region.labels) for region in recipe.regions]
        for value in values_of(recipe)
    ]
    return torch.tensor(rows)


def model_input(
    image: npt.NDArray[np.float32], spacing_mm: Sequence[float], recipe: Recipe
) -> torch.Tensor:
    """Raw intensities (C, D0, H0, W0) as the converter stores them: (C, D, H, W) float16.

    Args:
        spacing_mm: voxel size of the scan along D, H, W.
    """
    data = recipe.config.data
    shape = data.grid
    if data.resolution == "spaced":
        shape = shape_at(image.shape[1:], spacing_mm, recipe.spacing_mm)
    resampled = resample_image(normalise(image, recipe.normalisation), shape)
    return torch.from_numpy(resampled.astype(np.float16))


@torch.no_grad()
def predict(
    image: npt.NDArray[np.float32],
    spacing_mm: Sequence[float],
    recipe: Recipe,
    models: Sequence[Model],
    largest: Sequence[str] = (),
) -> Result:
    """Predict a scan by the mean of several models' probabilities.

    Args:
        image: (C, D0, H0, W0), the channels that the models take, raw, in the RAS+ orientation.
        spacing_mm: voxel size of the scan along D, H, W.
        recipe: of all models.
        largest: regions of which only the largest component is kept, in masks and label map;
            probabilities stay the models' own.

    Raises:
        UserError: a model whose output is not finite.
    """
    volume = model_input(image, spacing_mm, recipe)
    activation = recipe.config.model.activation
    answers = []
    for model in models:
        answers.append(model_logits(model, volume, recipe))
        if not torch.isfinite(answers[-1]).all():
            raise UserError("the model's output is not finite: it diverged, or was trained badly")
    logits = to_native(mean_probability(answers, activation)[0], image.shape[1:])[None]
    scores = region_logits(logits, activation)[0]
    if largest:
        scores = _cleaned(scores, [region.name in largest for region in recipe.regions])
    index = label_map(scores, contains(recipe))
    values = torch.tensor([0, *(value.labels[0] for value in values_of(recipe))])
    return Result(
        values.to(index.device)[index].to(torch.uint8).cpu().numpy(),
        (scores > 0).cpu().numpy(),
        region_probabilities(logits, activation)[0].cpu().numpy(),
    )


def _cleaned(scores: torch.Tensor, clean: Sequence[bool]) -> torch.Tensor:
    """Scores (R, D0, H0, W0) whose masks keep the largest component alone, where they shall."""
    scores = scores.clone()  # a sigmoid's are the logits, of which the probabilities are made
    for score, wanted in zip(scores, clean, strict=True):
        if wanted:
            mask = (score > 0).cpu().numpy()
            lost = torch.from_numpy(mask & ~largest_component(mask))
            score[lost.to(score.device)] = RULED_OUT
    return scores
