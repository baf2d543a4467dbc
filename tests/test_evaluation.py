from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvl_dist.config import RunConfig, smoke
from mvl_dist.evaluation import Prediction, evaluate_cases
from mvl_dist.figures import overlay
from mvl_dist.losses import region_dice
from mvl_dist.metrics import GRID_METRICS, METRICS, case_metrics
from mvl_dist.plan import Plan, make_plan
from mvl_dist.store import read_array, read_manifest


class Oracle(torch.nn.Module):
    """Answers with the label of the case that it is told, as logits at the store's grid."""

    def __init__(self, plan: Plan, empty: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        data, task = plan.config.data, plan.manifest.task
        self.answers = {}
        for case in plan.manifest.cases:
            label = read_array(data.store, task.name, case, "label")
            image = torch.from_numpy(read_array(data.store, task.name, case, "image"))
            masks = np.stack([label == value for value, _ in task.labels]) & (not empty)
            self.answers[float(image.float().sum())] = torch.from_numpy(masks * 20.0 - 10.0).float()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.answers[float(image.sum())][None]


@pytest.fixture
def plan(phantom_store: Path) -> Plan:
    config: RunConfig = smoke()
    data = replace(config.data, store=phantom_store, task="93", grid=(16, 16, 16))
    model = replace(config.model, name="vit_baseline")
    return make_plan(replace(config, data=data, model=model))


def test_a_perfect_answer_at_the_grid_is_nearly_perfect_in_the_scans_own_geometry(
    plan: Plan,
) -> None:
    predictions: list[Prediction] = []
    rows = evaluate_cases(Oracle(plan), plan, plan.manifest.cases, see=predictions.append)
    organ = [row for row in rows if row["region"] == "organ"]
    assert all(row["dice_grid"] == row["nsd_grid"] == 1 for row in rows)
    assert all(row["hd95_grid_voxels"] == 0 for row in rows)
    assert len(predictions) == len(plan.manifest.cases)
    # 96 x 96 x 28 voxels seen through 16^3: boundaries blur, the organ stays where it is.
    assert np.mean([row["dice"] for row in organ]) > 0.85
    manifest = read_manifest(plan.config.data.store, "93")
    for prediction in predictions:
        assert prediction.reference.shape[1:] == manifest.cases[prediction.case].native_shape


def test_a_perfect_answer_at_the_tasks_spacing_is_perfect_on_the_stores_grid_too(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(plan.config.data, resolution="spaced")
    crops = make_plan(replace(plan.config, data=data))
    case = crops.split.test[0]
    label = crops.reader.array(case, "label_spaced")
    masks = np.stack([label == value for value, _ in crops.manifest.task.labels])
    answer = torch.from_numpy(masks * 20.0 - 10.0).float()[None]
    monkeypatch.setattr("mvl_dist.evaluation.model_logits", lambda *arguments: answer)
    rows = {row["region"]: row for row in evaluate_cases(Oracle(plan), crops, [case])}
    assert rows["organ"]["dice"] > 0.97
    assert rows["lesion"]["dice"] > 0.85
    # `label` at 16^3 keeps volumes; so do the masks that come to it, unlike thresholded logits.
    assert rows["organ"]["dice_grid"] > 0.97
    assert rows["lesion"]["dice_grid"] > 0.85
    assert rows["organ"]["hd95_grid_voxels"] <= 1


def test_an_empty_answer_scores_zero_and_the_images_diagonal(plan: Plan) -> None:
    case = plan.split.test[0]
    rows = evaluate_cases(Oracle(plan, empty=True), plan, [case])
    info = plan.manifest.cases[case]
    diagonal = np.linalg.norm(np.multiply(info.native_shape, info.spacing_mm))
    for row in rows:
        assert (row["dice"], row["nsd"], row["sensitivity"]) == (0, 0, 0)
        assert row["hd95_mm"] == pytest.approx(diagonal)


def test_rows_name_what_was_scored_and_each_region_its_kind(plan: Plan) -> None:
    kept: list[Prediction] = []
    rows = evaluate_cases(
        Oracle(plan), plan, plan.split.validation, split="validation", see=kept.append
    )
    assert {row["case"] for row in rows} == set(plan.split.validation)
    assert {(row["model"], row["fold"], row["seed"], row["split"]) for row in rows} == {
        ("vit_baseline", 0, 0, "validation")
    }
    kinds = {row["region"]: row["kind"] for row in rows}
    assert kinds == {"organ": "label", "lesion": "label", "foreground": "foreground"} | {
        region.name: "union" for region in plan.manifest.task.union_regions
    }
    assert set(rows[0]) >= {*METRICS, *GRID_METRICS}
    assert [prediction.case for prediction in kept] == list(plan.split.validation)


def test_grid_figures_count_voxels_of_the_grid_as_the_paper_does(plan: Plan) -> None:
    class Shifted(Oracle):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image).roll(1, dims=2)

    case = plan.split.test[0]
    rows = evaluate_cases(Shifted(plan), plan, [case])
    (row,) = (row for row in rows if row["region"] == "organ")
    label = read_array(plan.config.data.store, plan.manifest.task.name, case, "label")
    organ = label == {name: value for value, name in plan.manifest.task.labels}["organ"]
    expected = case_metrics(np.roll(organ, 1, axis=0), organ, (1, 1, 1), 1.0)
    assert row["nsd_grid"] == expected["nsd"] == 1  # one voxel off, and one voxel is allowed
    assert row["hd95_grid_voxels"] == expected["hd95_mm"] == 1
    mask = torch.from_numpy(organ)[None, None].float()
    dice = region_dice(mask.roll(1, dims=2) - 0.5, mask)
    assert row["dice_grid"] == pytest.approx(float(dice))
    assert row["hd95_mm"] > 1  # a voxel of the grid is several millimetres


def test_the_overlay_is_a_picture(plan: Plan, tmp_path: Path) -> None:
    import matplotlib.image

    case = plan.split.test[0]
    predictions: list[Prediction] = []
    evaluate_cases(Oracle(plan), plan, [case], see=predictions.append)
    image = read_array(plan.config.data.store, plan.manifest.task.name, case, "image")[0]
    path = tmp_path / "overlay.png"
    spacing = plan.manifest.cases[case].spacing_mm
    overlay(path, predictions, [image.astype(float)], ["organ", "lesion"], [0.9], [spacing])
    pixels = matplotlib.image.imread(path)[..., :3]
    coloured = (pixels.max(-1) - pixels.min(-1)) > 0.3  # contours: everything else is grey
    assert coloured.sum() > 50
