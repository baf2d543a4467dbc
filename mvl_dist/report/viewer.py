"""Chosen cases as NIfTI in base64, for the page's 3D viewer (NiiVue)."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mvl_dist.figures import COLOURS
from mvl_dist.report.figures import first_runs, mean_dice, shown_models
from mvl_dist.report.results import Results
from mvl_dist.showcase import Showcase, chosen_by_rule, rank_cases

Array = npt.NDArray[Any]
# A page with the three cases of ten tasks stays below this; more is left out and said.
LIMIT_BYTES = 40 * 2**20


def viewer_cases(results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Best, median and worst case of each task, by Figure 2's rule, and what was left out.

    Where no run kept the image of a case, the case nearest to it in rank stands in, and its title
    says so.

    Returns:
        Cases as the page's script reads them: title, image, volumes (name, data), colours.
    """
    cases: list[dict[str, Any]] = []
    notes: list[str] = []
    used = 0
    for task in results.tasks(present_only=True):
        for case in _cases_of(results, task):
            size = len(case["image"]) + sum(len(volume["data"]) for volume in case["volumes"])
            if used + size > LIMIT_BYTES:
                notes.append(f"{case['title']} is left out: the page would be too large")
                continue
            used += size
            cases.append(case)
    return cases, notes


def _cases_of(results: Results, task: str) -> list[dict[str, Any]]:
    pair = shown_models(results)
    dice = mean_dice(results, task, pair)
    others = [model for model in results.models() if model not in pair]
    runs = first_runs(results, task, [*pair, *others])
    showcases = {
        model: showcase
        for model, slot in runs.items()
        if slot.run and (showcase := results.source.showcase(slot.run))
    }
    images = {case: s for s in showcases.values() for case in s.with_images() if case in dice}
    if not images:
        return []
    ranked = rank_cases(dice)
    found = {}
    for which, case in chosen_by_rule(dice).items():
        place = ranked.index(case)
        nearest = min(images, key=lambda name: (abs(ranked.index(name) - place), name))
        found[which] = nearest
    return [
        _case(
            task,
            which if case == chosen_by_rule(dice)[which] else f"near {which}",
            case,
            dice,
            images[case],
            showcases,
        )
        for which, case in found.items()
    ]


def _case(
    task: str,
    which: str,
    case: str,
    dice: dict[str, float],
    holder: Showcase,
    showcases: dict[str, Showcase],
) -> dict[str, Any]:
    about = holder.about["cases"][case]
    native = tuple(about["native_shape"])
    size = [n * mm for n, mm in zip(native, about["spacing_mm"], strict=True)]
    image = holder.array(case, "image")
    assert image is not None
    masks = {"reference": holder.masks(case, "reference")}
    masks |= {
        m: s.masks(case, "predicted") for m, s in showcases.items() if case in s.about["cases"]
    }
    reference = masks["reference"]
    errors = {
        f"errors of {name}": error_map(mask, reference)
        for name, mask in masks.items()
        if name != "reference" and mask is not None and reference is not None
    }
    return {
        "title": f"{task}, {which}: {case} (Dice {dice[case]:.2f})",
        "image": nifti(image, [mm / n for mm, n in zip(size, image.shape, strict=True)]),
        "volumes": [
            {"name": name, "data": nifti(labels, about["spacing_mm"])}
            for name, labels in {
                **{name: label_map(mask) for name, mask in masks.items() if mask is not None},
                **errors,
            }.items()
        ],
        "regions": list(holder.about["regions"]),
        "colours": [COLOURS[i % len(COLOURS)] for i in range(len(holder.about["regions"]))],
    }


def label_map(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Regions (R, D, H, W) as values 1 to R; of regions that overlap the smaller one is on top."""
    labels = np.zeros(masks.shape[1:], np.uint8)
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        labels[masks[index]] = index + 1
    return labels


def error_map(
    predicted: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Where a prediction is wrong: 1 missed, 2 false foreground, 3 another region: (D, H, W)."""
    found, there = predicted.any(0), reference.any(0)
    errors = np.zeros(found.shape, np.uint8)
    errors[(predicted != reference).any(0)] = 3
    errors[there & ~found] = 1
    errors[found & ~there] = 2
    return errors


def nifti(volume: Array, spacing_mm: Sequence[float]) -> str:
    """A volume (D, H, W) in RAS+ as base64 of a .nii.gz; the corner of the grid lies at 0 mm.

    Image and masks have grids of their own over the same extent, so they lie over each other.
    """
    import nibabel

    w_h_d = list(reversed([float(mm) for mm in spacing_mm]))
    affine = np.diag([*w_h_d, 1.0])
    affine[:3, 3] = [mm / 2 for mm in w_h_d]
    file = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    return base64.b64encode(gzip.compress(file.to_bytes(), 9, mtime=0)).decode()
