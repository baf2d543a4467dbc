"""A training around a block in FP8, through DeepSpeed: it is saved, read back and put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvl_dist import checkpoint, runs
from mvl_dist.consolidate import consolidate
from mvl_dist.errors import UserError
from mvl_dist.models.count import donor_parameter_names
from mvl_dist.models.frozen import FP8Linear
from tests.system.launching import curve, deepspeed_config, launch, run_folder

pytestmark = pytest.mark.tworank


@pytest.fixture(scope="module")
def flags(arguments: list[str]) -> list[str]:
    small = ("--depth", "1", "--llm-position", "1", "--dropout", "0", "--target", "binary")
    return [*arguments, *small, "--epochs", "1", "--frozen-precision", "fp8"]


def test_a_training_around_fp8_reads_back_and_goes_together(
    flags: list[str], tmp_path: Path
) -> None:
    done = launch([*flags, "--output", str(tmp_path)], ranks=1)
    assert done.code == 0, done.errors
    assert len(curve(tmp_path)) >= 2
    folder = run_folder(tmp_path)
    plan, model = runs.load_trained(folder)
    assert sum(isinstance(m, FP8Linear) for m in model.modules()) == 7
    saved = load_file(folder / checkpoint.BEST)
    assert not saved.keys() & donor_parameter_names(model)
    untrained = runs.untrained(folder).eval()
    image = torch.randn(1, len(plan.recipe.modalities), *plan.config.data.grid)
    with torch.no_grad():
        expected = model(image)
        assert not torch.allclose(untrained(image), expected)
        consolidate(folder, tmp_path / "last.safetensors")
        untrained.load_state_dict(load_file(tmp_path / "last.safetensors"), strict=False)
        assert torch.equal(untrained(image), expected)  # the only epoch is the best
        # The same trained weights around the block in the model's precision: near, not equal.
        config = replace(plan.config, model=replace(plan.config.model, frozen_precision="model"))
        plain = runs.build(replace(plan.recipe, config=config), runs.load_run_donor(config))
        checkpoint.load_best(folder, plain, donor_parameter_names(plain))
        difference = (plain.eval()(image) - expected).norm() / expected.norm()
        assert 1e-4 < difference < 0.2
    with pytest.raises(UserError, match=r"--with-donor: .* holds its block in fp8"):
        consolidate(folder, tmp_path / "whole.safetensors", with_donor=True)
    assert not (tmp_path / "whole.safetensors").exists()


def test_zero_3_is_one_line_and_leaves_nothing(flags: list[str], tmp_path: Path) -> None:
    settings = deepspeed_config(tmp_path, 3)
    done = launch([*flags, "--output", str(tmp_path / "runs")], ranks=1, deepspeed=settings)
    assert "--frozen-precision fp8 does not go with ZeRO-3" in done.one_line()
    assert not list(tmp_path.rglob("config.yaml"))
