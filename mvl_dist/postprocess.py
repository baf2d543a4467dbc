"""Keeping only the largest component of a region, where validation cases say that it helps.

An organ is one piece, and a stray island far away costs surface distance; a lesion is often many.
Which regions it is for is decided by the mean Dice of validation cases alone, written into the
run's folder, and applied to the test cases as it stands there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mvl_dist.errors import UserError
from mvl_dist.files import sha256_of, write_text_atomically

POSTPROCESSING = "postprocessing.json"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gain:
    """Dice of one validation case and region as predicted, and with its largest component alone."""

    case: str
    region: str
    dice: float
    dice_largest: float


@dataclass(frozen=True)
class Choice:
    """What validation chose.

    Attributes:
        regions: those of which only the largest component is kept.
        cases: validation cases that decided, counted once for each model that scored them.
        dice: region -> mean Dice as predicted, and with the largest component alone.
        models: checksum of each model that it was chosen for.
    """

    regions: tuple[str, ...]
    cases: int
    dice: Mapping[str, tuple[float, float]]
    models: tuple[str, ...]


def largest_component(mask: Mask) -> Mask:
    """The component with the most voxels; voxels that share a corner belong together.

    The first in C order of those that are level; an empty mask stays empty.
    """
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept: Mask = parts == sizes.argmax()
    return kept


def choose(gains: Sequence[Gain], models: Sequence[str]) -> Choice:
    """The regions whose mean Dice over the validation cases rises."""
    dice = {}
    for region in dict.fromkeys(gain.region for gain in gains):
        pairs = [(g.dice, g.dice_largest) for g in gains if g.region == region]
        before, after = np.mean(pairs, axis=0)
        dice[region] = (float(before), float(after))
    return Choice(
        regions=tuple(region for region, (before, after) in dice.items() if after > before),
        cases=len({gain.case for gain in gains}),
        dice=dice,
        models=tuple(models),
    )


def combine(choices: Sequence[Choice]) -> Choice:
    """What several models' validation cases choose together: an ensemble's choice.

    A region's mean Dice is that over all of their cases, as if `choose` had seen them at once.

    Args:
        choices: of models that mark the same regions.
    """
    cases = [choice.cases for choice in choices]
    dice = {}
    for region in choices[0].dice:
        before, after = np.average([choice.dice[region] for choice in choices], 0, cases)
        dice[region] = (float(before), float(after))
    return Choice(
        regions=tuple(region for region, (before, after) in dice.items() if after > before),
        cases=sum(cases),
        dice=dice,
        models=tuple(model for choice in choices for model in choice.models),
    )


def write_choice(folder: Path, choice: Choice) -> None:
    """Put a choice into a run's folder."""
    content = {"largest_component": asdict(choice), "chosen_on": "validation cases"}
    write_text_atomically(folder / POSTPROCESSING, json.dumps(content, indent=1))


def read_choice(folder: Path, models: Sequence[str]) -> Choice | None:
    """The folder's choice; None where there is none, or one that was made for other models."""
    try:
        about = json.loads((folder / POSTPROCESSING).read_text())["largest_component"]
        choice = Choice(
            regions=tuple(about["regions"]),
            cases=about["cases"],
            dice={region: (pair[0], pair[1]) for region, pair in about["dice"].items()},
            models=tuple(about["models"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if choice.models == tuple(models) else None


def choice_of_model(folder: Path, weights: str) -> Choice:
    """What validation chose for the model of a run's or an exported folder.

    Args:
        weights: name of the folder's weights file.

    Raises:
        UserError: nothing was chosen yet for these weights.
    """
    choice = read_choice(folder, [sha256_of(folder / weights)])
    if choice is None:
        state = "of other weights, or damaged" if (folder / POSTPROCESSING).exists() else "missing"
        raise UserError(
            f"--largest-component: {folder / POSTPROCESSING} is {state}: 'mvl evaluate RUN "
            "--largest-component' on the run chooses by its validation cases; then export or fetch "
            "it again if this is a copy"
        )
    return choice
