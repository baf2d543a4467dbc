"""Whole volumes through models: at once, or by a sliding window."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from mvl_dist.config import RunConfig, smoke
from mvl_dist.inference import (
    Ensemble,
    forward_calls,
    model_logits,
    sums_device,
    volume_logits,
    windows_at_once,
)
from mvl_dist.models import MODELS, build_model
from mvl_dist.models.donors import load_donor
from mvl_dist.recipe import Recipe
from mvl_dist.tasks import TASKS
from tests.models.test_medvisionllama import TINY

CPU = torch.device("cpu")


def recipe(
    grid: tuple[int, int, int], overlap: float = 0.5, name: str = "vit_baseline", **model: object
) -> Recipe:
    config: RunConfig = smoke()
    small = {"patch": (8, 8, 8), "width": 16, "heads": 2, "depth": 2, "llm_position": 2}
    data = replace(config.data, resolution="spaced", grid=grid, overlap=overlap)
    network = replace(config.model, name=name, **{**small, **model})  # type: ignore[arg-type]
    task = TASKS["Task04_Hippocampus"]
    return Recipe(replace(config, data=data, model=network), task, {}, (1.0, 1.0, 1.0))


class Counting(torch.nn.Module):
    """A linear map of each voxel by itself, which no window can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Conv3d(1, 2, 1)
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(image)


@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 17, 33), (9, 50, 16), (3, 4, 5)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@torch.no_grad()
def test_windows_cover_a_volume_of_any_size_and_are_counted_beforehand(
    shape: tuple[int, int, int], overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvl_dist.inference.VOXELS_AT_ONCE", 5 * 16**3)
    model, image = Counting().eval(), torch.randn(1, *shape)
    crops = recipe((16, 16, 16), overlap)
    logits = model_logits(model, image.half(), crops)
    expected = model.linear(image.half().float()[None])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert model.calls == forward_calls(shape, crops)


@torch.no_grad()
def test_a_volume_of_the_crops_size_is_one_forward_and_a_grid_always_is() -> None:
    crops = recipe((16, 16, 16))
    model = build_model(crops.config.model, 1, 2, (16, 16, 16)).eval()
    image = torch.randn(1, 16, 16, 16)
    alone = model(image[None])
    torch.testing.assert_close(model_logits(model, image, crops), alone, rtol=1e-5, atol=1e-6)
    config = crops.config
    grid = replace(crops, config=replace(config, data=replace(config.data, resolution="grid")))
    assert torch.equal(model_logits(model, image, grid), alone)
    assert forward_calls((16, 16, 16), grid) == 1


@torch.no_grad()
def test_windows_are_weighted_as_monais_inferer_does() -> None:
    crops = recipe((16, 16, 16), overlap=0.25)
    model = build_model(crops.config.model, 1, 2, (16, 16, 16)).eval()
    image = torch.randn(1, 20, 37, 16)
    inferer = SlidingWindowInferer((16, 16, 16), sw_batch_size=1, overlap=0.25, mode="gaussian")
    expected = inferer(image[None], model)
    torch.testing.assert_close(model_logits(model, image, crops), expected, rtol=1e-4, atol=1e-5)
    flat = SlidingWindowInferer((16, 16, 16), overlap=0.25)(image[None], model)
    assert (flat - expected).abs().max() > 1e-2


@torch.no_grad()
def test_sums_are_float32_whatever_the_model_is() -> None:
    crops, image = recipe((16, 16, 16)), torch.randn(1, 40, 40, 40)
    seen: list[torch.dtype] = []

    def forward(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows.dtype)
        return torch.full_like(windows, 1.0078125)  # the first bfloat16 above 1

    logits = volume_logits(forward, image, crops, CPU, torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(logits, torch.full((1, 1, 40, 40, 40), 1.0078125))


def test_large_volumes_are_summed_in_main_memory_and_small_windows_go_together() -> None:
    gpu = torch.device("cuda")
    assert sums_device((128, 256, 256), 3, gpu) == gpu
    assert sums_device((500, 512, 512), 2, gpu) == CPU
    assert windows_at_once((128, 128, 128)) == 2
    assert windows_at_once((256, 256, 128)) == 1
    assert windows_at_once((64, 64, 64)) == 16
    assert windows_at_once((16, 16, 16)) == 32


@torch.no_grad()
def test_an_ensemble_averages_its_members_whole_volumes() -> None:
    crops, image = recipe((16, 16, 16)), torch.randn(1, 24, 16, 20)
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(build_model(crops.config.model, 1, 2, (16, 16, 16)).eval())
    singles = [model_logits(model, image, crops).double().sigmoid() for model in members]
    weights = [{k: v.clone() for k, v in model.state_dict().items()} for model in members]
    together = model_logits(Ensemble(members[0], weights, "sigmoid"), image, crops)
    mean = torch.logit(sum(singles) / 2)
    torch.testing.assert_close(together.double(), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_model_takes_windows_of_a_scan_that_is_smaller_and_larger_than_they(
    name: str, tmp_path: Path
) -> None:
    grid = (32, 32, 64)
    crops = recipe(grid, name=name, features=4)
    donor = None
    if MODELS[name].needs_donor:
        (tmp_path / "config.json").write_text(json.dumps(TINY))
        donor = load_donor(f"random:{tmp_path / 'config.json'}", (-1,))
    model = build_model(crops.config.model, 1, 2, grid, donor, (3.0, 1.0, 1.0)).eval()
    logits = model_logits(model, torch.randn(1, 32, 25, 70), crops)
    assert logits.shape == (1, 2, 32, 25, 70)
    assert math.isfinite(float(logits.sum()))
