from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from mvl_dist.config import smoke
from mvl_dist.evaluation import evaluate_cases
from mvl_dist.exhibit import Exhibit, note_of, of_case, reliability
from mvl_dist.plan import make_plan
from mvl_dist.report.extras import calibration_error
from mvl_dist.runs import build
from mvl_dist.showcase import BINS


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and foreground drawn by them inside a box; outside there is none."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.zeros(40, 40, 40)
    probability[10:30, 10:30, 10:30] = torch.rand(20, 20, 20, generator=generator)
    target = (torch.rand(40, 40, 40, generator=generator) < probability).to(torch.uint8)
    return probability, target


def test_bins_are_those_of_scikit_learn(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    probability, target = drawn
    voxels, confidence, truth = reliability(probability, target)["all"].T
    frequency, predicted = calibration_curve(
        target.flatten().numpy(), probability.flatten().numpy(), n_bins=BINS
    )
    np.testing.assert_allclose(confidence / voxels, predicted, rtol=1e-5)
    np.testing.assert_allclose(truth / voxels, frequency, rtol=1e-5)
    assert voxels.sum() == 40**3


def test_an_honest_probability_has_no_error_and_a_sure_one_has(
    drawn: tuple[torch.Tensor, torch.Tensor],
) -> None:
    probability, target = drawn
    assert calibration_error(reliability(probability, target)["box"]) < 0.02
    sure = (probability > 0.5).float()
    # Of a uniform p, |1 - p| above a half and p below it are 1/4 on average, inside the box.
    assert calibration_error(reliability(sure, target)["all"]) == pytest.approx(0.25 / 8, rel=0.05)


def test_the_box_is_the_references_enlarged_by_half() -> None:
    target = torch.zeros(20, 20, 20)
    target[8:12, 8:12, 8:12] = 1  # margins of 2 on either side: 8^3 voxels
    counts = reliability(torch.zeros(20, 20, 20), target)
    assert counts["box"][:, 0].sum() == 8**3
    assert counts["box"][:, 2].sum() == 4**3
    assert reliability(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4))["box"].sum() == 0


def test_a_runs_description_names_its_worst_case() -> None:
    rows = [
        {"case": case, "region": region, "dice": dice, "hd95_mm": 3.0}
        for case, dice in (("good", 0.9), ("bad", 0.2), ("fair", 0.6))
        for region in ("a", "b")
    ]
    note = note_of(rows, Path("run/report/showcase.npz"))
    assert "| worst | bad | 0.200 | 3.0 |" in note
    assert "**Dice 0.567" in note


def test_masks_are_those_that_are_scored(phantom_store: Path) -> None:
    config = smoke()
    data = replace(config.data, store=phantom_store, task="91", grid=(16, 16, 16))
    plan = make_plan(replace(config, data=data, model=replace(config.model, name="vit_baseline")))
    model = build(plan.recipe, None).eval()
    calls: list[object] = []
    model.register_forward_hook(lambda *_: calls.append(_))
    seen: list[Exhibit] = []
    rows = evaluate_cases(
        model, plan, plan.split.test, see=lambda case: seen.append(of_case(plan, case))
    )
    (shown,) = seen
    assert len(calls) == len(plan.split.test)  # a sliding window over a CT takes minutes
    dice = {row["region"]: row["dice"] for row in rows}
    pairs = zip(plan.regions, shown.predicted.masks(), shown.reference.masks(), strict=True)
    for region, predicted, reference in pairs:
        overlap = 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
        assert overlap == pytest.approx(dice[region.name])
