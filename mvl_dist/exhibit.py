"""What a finished training shows of its test cases: gathered from all ranks, written on rank 0.

Nothing here decides a result. A training whose showcase cannot be made says so and ends well.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvl_dist.activations import activation_maps, has_maps
from mvl_dist.data import ARRAYS_OF, load_image, region_masks
from mvl_dist.evaluation import Seen
from mvl_dist.patches import crop_around_reference
from mvl_dist.plan import Plan
from mvl_dist.showcase import (
    BINS,
    Array,
    Packed,
    Writer,
    add_case,
    by_importance,
    chosen_by_rule,
    fullest_slice,
    mean_dice,
    relative_index,
    to_uint8,
)


@dataclass(frozen=True)
class Exhibit:
    """One test case as it travels to rank 0.

    Attributes:
        calibration: region -> where (`all`, `box`) -> (bins, 3), see `reliability`.
        forward_seconds: of the whole case's prediction, copies to the device included.
    """

    case: str
    predicted: Packed
    reference: Packed
    calibration: Mapping[str, Mapping[str, Array]]
    forward_seconds: float


@torch.no_grad()
def of_case(plan: Plan, prediction: Seen) -> Exhibit:
    """A case's masks packed, and the model's probabilities binned."""
    data = plan.config.data
    logits = prediction.logits.cpu()
    softmax = plan.config.model.activation == "softmax"
    probabilities = logits.softmax(1)[0, 1:] if softmax else logits.sigmoid()[0]
    label = torch.from_numpy(plan.reader.array(prediction.case, ARRAYS_OF[data.resolution][1]))
    target = region_masks(label, plan.regions)
    return Exhibit(
        prediction.case,
        Packed.of(prediction.predicted),
        Packed.of(prediction.reference),
        {
            region.name: reliability(probabilities[index], target[index])
            for index, region in enumerate(plan.regions)
        },
        prediction.seconds,
    )


def reliability(probability: torch.Tensor, target: torch.Tensor) -> dict[str, Array]:
    """Voxels by their predicted probability, in `BINS` equal bins: where -> (bins, 3).

    The columns are voxels, sum of probabilities, voxels that are foreground. `all` counts every
    voxel of the grid; `box` those in the reference's bounding box, enlarged by half its size on
    either side, where the easy background does not hide the rest (Mehrtash et al., IEEE TMI 2020).
    Without reference there is no box: all zeros.

    Args:
        probability, target: (D, H, W).
    """
    return {
        "all": _binned(probability, target),
        "box": _binned(*(values[_box(target)] for values in (probability, target)))
        if bool(target.any())
        else np.zeros((BINS, 3)),
    }


def _binned(probability: torch.Tensor, target: torch.Tensor) -> Array:
    values, truth = probability.flatten().double(), target.flatten().double()
    bins = (values * BINS).long().clamp(0, BINS - 1)
    counted = (torch.ones_like(values), values, truth)
    columns = [torch.bincount(bins, weights=weight, minlength=BINS) for weight in counted]
    array: Array = torch.stack(columns, 1).numpy()
    return array


def _box(target: torch.Tensor) -> tuple[slice, ...]:
    slices = []
    for places, size in zip(target.nonzero().T, target.shape, strict=True):
        first, last = int(places.min()), int(places.max()) + 1
        margin = (last - first + 1) // 2
        slices.append(slice(max(first - margin, 0), min(last + margin, size)))
    return tuple(slices)


def write(
    path: Path,
    plan: Plan,
    model: torch.nn.Module,
    rows: Sequence[Mapping[str, Any]],
    exhibits: Sequence[Exhibit],
) -> None:
    """Write a run's showcase (rank 0)."""
    dice, known = mean_dice(rows), {exhibit.case: exhibit for exhibit in exhibits}
    order = [case for case in by_importance(dice) if case in known]
    writer = Writer()
    depths, left_out = {}, []
    about = _about(plan, exhibits)
    maps = _activations(plan, model, exhibits) if has_maps(model) else {}
    for name, values in maps.pop("maps", {}).items():
        writer.add(f"activation/{name}", values.astype(np.float16))
    about["activation"] = maps
    for region in exhibits[0].calibration if exhibits else ():
        for where in exhibits[0].calibration[region]:
            total = sum(exhibit.calibration[region][where] for exhibit in exhibits)
            writer.add(f"calibration/{region}/{where}", np.asarray(total))
    three = set(chosen_by_rule(dice).values())
    for case in sorted(order, key=lambda name: name not in three):
        exhibit = known[case]
        image = to_uint8(_first_channel(plan, case))
        depths[case] = fullest_slice(exhibit.reference.masks())
        plane = image[relative_index(depths[case], exhibit.reference.shape[1], len(image))]
        if not add_case(writer, case, exhibit.predicted, exhibit.reference, plane):
            left_out.append(case)
        elif case in three:
            writer.add(f"{case}/image", image)
    for case in order:
        if case not in three and case not in left_out:
            writer.add(f"{case}/image", to_uint8(_first_channel(plan, case)))
    about["cases"] = {
        case: {
            "native_shape": list(known[case].reference.shape[1:]),
            "spacing_mm": list(plan.manifest.cases[case].spacing_mm),
            "dice": dice[case],
            "depth": depths[case],
        }
        for case in order
    }
    about["left_out"] = left_out
    writer.write(path, about)


def _first_channel(plan: Plan, case: str) -> Array:
    image: Array = load_image(plan.reader, case, "first").numpy()[0]
    return image


def _about(plan: Plan, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()  # the next run of this launch begins anew
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "version": 1,
        "task": plan.manifest.task.name,
        "regions": [region.name for region in plan.regions],
        "grid": list(plan.manifest.grid),
        "tolerance_mm": plan.manifest.task.tolerance_mm,
        "counts": {
            part: len(getattr(plan.split, part)) for part in ("train", "validation", "test")
        },
        "forward_ms": 1000 * float(np.median([e.forward_seconds for e in exhibits] or [np.nan])),
        "peak_memory_gib": peak,
        "peak_memory_of": "tensors on the GPU" if cuda else "the process, on a CPU",
    }


def _activations(plan: Plan, model: torch.nn.Module, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    """Maps of the case with the largest reference: the same case for every model of a task."""
    volume = {
        e.case: float(e.reference.masks().any(0).sum())
        * float(np.prod(plan.manifest.cases[e.case].spacing_mm))
        for e in exhibits
    }
    case = max(volume, key=lambda name: (volume[name], name))
    image, label = _seen_at_once(plan, case)
    maps = activation_maps(model, image, plan.config.model.activation)
    reference: Array = region_masks(label, plan.regions).bool().numpy()
    depth = fullest_slice(reference)
    volumes: dict[str, Array] = {
        "X": image[0].numpy(),
        "reference": np.asarray(reference.any(0)),
        **maps,
    }
    return {
        "case": case,
        "maps": {
            name: volume[relative_index(depth, image.shape[1], len(volume))]
            for name, volume in volumes.items()
        },
    }


def _seen_at_once(plan: Plan, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, D, H, W) and label (D, H, W) of one forward pass: a whole case, or a crop of it."""
    data = plan.config.data
    if data.resolution == "spaced":
        return crop_around_reference(plan.reader, plan.manifest, case, data)
    label = torch.from_numpy(plan.reader.array(case, "label"))
    return load_image(plan.reader, case, data.channels), label


def note_of(rows: Sequence[Mapping[str, Any]], path: Path) -> str:
    """A run's description for MLflow's page: how good, and what it got wrong (Markdown)."""
    dice = mean_dice(rows)
    rule = chosen_by_rule(dice)
    values = np.array(list(dice.values()))
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    lines = [
        f"**Dice {values.mean():.3f}{spread}** over {len(dice)} held-out cases (native grid; mean "
        "over the regions of a case).",
        "",
        "| | case | Dice | HD95 (mm) |",
        "|---|---|---|---|",
    ]
    for which in ("worst", "median", "best"):
        case = rule[which]
        hd95 = [float(row["hd95_mm"]) for row in rows if row["case"] == case]
        lines.append(f"| {which} | {case} | {dice[case]:.3f} | {max(hd95):.1f} |")
    lines += [
        "",
        "Artifacts: `test_overlay.png` shows these three, `test_cases.json` every case, "
        f"`{path.parent.name}/{path.name}` what `mvl report` reads.",
    ]
    return "\n".join(lines)
