import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvl_dist.config import RunConfig, smoke
from mvl_dist.evaluation import METRICS, evaluate_cases, summaries, table, write_csv
from mvl_dist.figures import overlay
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
    rows, predictions = evaluate_cases(Oracle(plan), plan, plan.manifest.cases)
    organ = [row for row in rows if row["region"] == "organ"]
    assert all(row["dice_grid"] == 1 for row in rows)
    # 96 x 96 x 28 voxels seen through 16^3: boundaries blur, the organ stays where it is.
    assert np.mean([row["dice"] for row in organ]) > 0.85
    manifest = read_manifest(plan.config.data.store, "93")
    for prediction in predictions:
        assert prediction.reference.shape[1:] == manifest.cases[prediction.case].native_shape


def test_an_empty_answer_scores_zero_and_the_images_diagonal(plan: Plan) -> None:
    case = plan.split.test[0]
    rows, _ = evaluate_cases(Oracle(plan, empty=True), plan, [case])
    info = plan.manifest.cases[case]
    diagonal = np.linalg.norm(np.multiply(info.native_shape, info.spacing_mm))
    for row in rows:
        assert (row["dice"], row["nsd"], row["sensitivity"]) == (0, 0, 0)
        assert row["hd95_mm"] == pytest.approx(diagonal)


def test_the_table_shows_n_of_defined_cases() -> None:
    nan = float("nan")
    rows = [
        {"region": "a", **dict.fromkeys((*METRICS, "dice_grid"), value)}
        for value in (0.5, 1.0, nan)
    ]
    text = table(summaries(rows, ["a"]), tolerance_mm=2.0)
    assert "0.750" in text
    assert "n=2" in text
    assert "NSD at 2 mm" in text


def test_rows_are_written_as_csv(tmp_path: Path) -> None:
    write_csv([{"case": "a", "dice": 0.25}, {"case": "b", "dice": 1.0}], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        assert [row["dice"] for row in csv.DictReader(file)] == ["0.25", "1.0"]


def test_the_overlay_is_a_picture(plan: Plan, tmp_path: Path) -> None:
    import matplotlib.image

    case = plan.split.test[0]
    _, predictions = evaluate_cases(Oracle(plan), plan, [case])
    image = read_array(plan.config.data.store, plan.manifest.task.name, case, "image")[0]
    path = tmp_path / "overlay.png"
    spacing = plan.manifest.cases[case].spacing_mm
    overlay(path, predictions, [image.astype(float)], ["organ", "lesion"], [0.9], [spacing])
    pixels = matplotlib.image.imread(path)[..., :3]
    coloured = (pixels.max(-1) - pixels.min(-1)) > 0.3  # contours: everything else is grey
    assert coloured.sum() > 50
