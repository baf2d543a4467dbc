"""Metrics of cases in their own geometry, and beside them at the store's grid, as the paper's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mvl_dist.data import ARRAYS_OF, load_image, number_of, region_masks
from mvl_dist.inference import model_logits
from mvl_dist.label_resampling import resample_label
from mvl_dist.labelling import region_logits
from mvl_dist.metrics import GRID_METRICS, case_metrics
from mvl_dist.native_grid import to_native
from mvl_dist.plan import Plan
from mvl_dist.postprocess import Gain, largest_component
from mvl_dist.regions import ScoredRegion, pairs_to_score, scored_regions
from mvl_dist.sharing import threads_of_rank

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """A case with the masks of what the model marks, at native geometry, (R, D0, H0, W0) each."""

    case: str
    predicted: Mask
    reference: Mask


@dataclass(frozen=True)
class Seen(Prediction):
    """A prediction just made.

    Attributes:
        logits, seconds: as an `Answer`'s.
    """

    logits: torch.Tensor
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What a model marks in a case, and the labels to compare it with.

    Attributes:
        native: (R, D0, H0, W0) masks at the scan's own grid; `native_label` is untouched.
        grid: (R, D, H, W) masks at the store's grid.
        logits: (1, R, D, H, W) float32 at the resolution of the model's input.
        seconds: what they took: one forward pass at batch 1, or a sliding window.
    """

    native: Mask
    native_label: Labels
    grid: Mask
    grid_label: Labels
    logits: torch.Tensor
    seconds: float


@torch.no_grad()
def predict_case(model: torch.nn.Module, plan: Plan, case: str) -> Answer:
    """Predict one case and bring its logits back to the scan's own grid before the threshold.

    A model of crops answers at the task's spacing; its masks come from the scan's own grid to the
    store's as `label` did, each keeping its volume.
    """
    data, activation = plan.config.data, plan.config.model.activation
    image = load_image(plan.reader, case, data.channels, data.resolution)
    started = time.monotonic()
    logits = model_logits(model, image, plan.recipe)
    if logits.is_cuda:
        torch.cuda.synchronize(logits.device)
    seconds = time.monotonic() - started
    native_label = plan.reader.array(case, "label_native")
    native_logits = to_native(logits[0], native_label.shape)[None]
    native = (region_logits(native_logits, activation)[0] > 0).cpu().numpy()
    if data.resolution == "grid":
        grid = (region_logits(logits, activation)[0] > 0).cpu().numpy()
    else:
        grid_shape = plan.manifest.grid
        grid = np.stack([resample_label(m.view(np.uint8), grid_shape) > 0 for m in native])
    return Answer(
        native=native,
        native_label=native_label,
        grid=grid,
        grid_label=plan.reader.array(case, "label"),
        logits=logits,
        seconds=seconds,
    )


def _in_turn(plan: Plan, cases: Iterable[str]) -> Iterator[str]:
    """Cases, while a store far away sends what `predict_case` reads of the next ones."""
    data = plan.config.data
    image = ARRAYS_OF[data.resolution][0]
    arrays = {image: number_of(data.channels), "label_native": None, "label": None}
    return plan.reader.in_turn(list(cases), arrays)


def evaluate_cases(
    model: torch.nn.Module,
    plan: Plan,
    cases: Iterable[str],
    *,
    split: str = "test",
    largest: Sequence[str] = (),
    see: Callable[[Seen], None] | None = None,
) -> list[dict[str, Any]]:
    """Metrics of each case and scored region.

    Args:
        model: gives logits (1, C, D, H, W) of an image (1, C, D, H, W); an ensemble does too.
        largest: regions that the model marks of which only the largest component is kept.
        see: is shown each case's masks and logits, for pictures; a large CT's take gigabytes, so
            none are kept here.

    Returns:
        Rows that say what was scored (`task`, `model`, `fold`, `fraction`, `seed`, `split`, `case`,
        `region`, `kind`), `METRICS` on the native grid in millimetres, and `GRID_METRICS`.
    """
    model.eval()
    rows: list[dict[str, Any]] = []
    task, config = plan.manifest.task, plan.config
    regions = scored_regions(task, config.data.target)
    about = {
        "task": task.name,
        "model": config.model.name,
        "fold": config.data.fold,
        "fraction": config.data.fraction,
        "seed": config.optim.seed,
        "split": split,
    }
    cleaned = [index for index, region in enumerate(plan.regions) if region.name in largest]
    for case in _in_turn(plan, cases):
        answer = predict_case(model, plan, case)
        for masks in (answer.native, answer.grid):
            for index in cleaned:
                masks[index] = largest_component(masks[index])
        spacing_mm = plan.manifest.cases[case].spacing_mm
        values = score_answer(answer, regions, spacing_mm, task.tolerance_mm)
        for region in regions:
            names = {"case": case, "region": region.name, "kind": region.kind}
            rows.append({**about, **names, **values[region.name]})
        if see is not None:
            label = torch.from_numpy(answer.native_label)
            reference = region_masks(label, plan.regions).bool().numpy()
            see(Seen(case, answer.native, reference, answer.logits, answer.seconds))
        del answer  # before the next case needs as much
    return rows


def largest_component_gains(model: torch.nn.Module, plan: Plan, cases: Iterable[str]) -> list[Gain]:
    """What keeping the largest component of each region that the model marks does to its Dice."""
    model.eval()
    gains = []
    for case in _in_turn(plan, cases):
        answer = predict_case(model, plan, case)
        for mask, region in zip(answer.native, plan.regions, strict=True):
            reference = np.isin(answer.native_label, region.labels)
            before, after = (_dice(m, reference) for m in (mask, largest_component(mask)))
            gains.append(Gain(case, region.name, before, after))
        del answer
    return gains


def _dice(prediction: Mask, reference: Mask) -> float:
    both, total = (prediction & reference).sum(), prediction.sum() + reference.sum()
    return float(2 * both / total) if total else 1.0


def score_answer(
    answer: Answer,
    regions: Sequence[ScoredRegion],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> dict[str, dict[str, float]]:
    """Both sets of metrics of each region by its name, on this rank's share of the cores."""
    # A union of all labels, or the only label, is the foreground by another name.
    distinct = {(region.outputs, region.labels): region for region in regions}.values()
    native = pairs_to_score(distinct, answer.native, answer.native_label)
    grid = pairs_to_score(distinct, answer.grid, answer.grid_label)
    threads = threads_of_rank()
    inner = max(1, threads // (2 * len(native)))
    with ThreadPoolExecutor(threads) as pool:
        in_mm = {
            name: pool.submit(case_metrics, *pair, spacing_mm, tolerance_mm, inner)
            for name, pair in native.items()
        }
        in_voxels = {
            name: pool.submit(case_metrics, *pair, (1.0, 1.0, 1.0), 1.0, inner)
            for name, pair in grid.items()
        }
    scored = {
        (region.outputs, region.labels): in_mm[region.name].result()
        | {ours: in_voxels[region.name].result()[key] for ours, key in GRID_METRICS.items()}
        for region in distinct
    }
    return {region.name: scored[region.outputs, region.labels] for region in regions}
