"""A training through torch.compile, under DeepSpeed: the same run, the same curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.launching import curve, deepspeed_config, launch, run_folder, tags

pytestmark = [pytest.mark.tworank, pytest.mark.slow]

# Fused operations round in another order, grown over the steps.
RELATIVE_TOLERANCE = 1e-4


@pytest.fixture
def flags(arguments: list[str]) -> list[str]:
    small = ("--depth", "1", "--llm-position", "1", "--dropout", "0", "--target", "binary")
    return [*arguments, *small, "--epochs", "2"]


def test_two_compiled_ranks_follow_the_curve_of_two_that_are_not(
    flags: list[str], tmp_path: Path
) -> None:
    found = []
    for compiled in ("False", "True"):
        output, kernels = tmp_path / compiled, tmp_path / f"kernels-{compiled}"
        options = [*flags, "--output", str(output), "--compile", compiled]
        done = launch(options, TORCHINDUCTOR_CACHE_DIR=str(kernels))
        assert done.code == 0, done.errors
        # The losses may agree to the bit: that they are compiled operations' shows here.
        assert bool(list(kernels.rglob("*.so"))) == (compiled == "True")
        assert tags(output)["compile"] == compiled
        found.append((run_folder(output).name, curve(output), curve(output, "val_loss")))
    (name, losses, validation), (other_name, other_losses, other_validation) = found
    assert other_name == name
    assert len(losses) > 3
    assert other_losses == pytest.approx(losses, rel=RELATIVE_TOLERANCE)
    assert other_validation == pytest.approx(validation, rel=RELATIVE_TOLERANCE)


def test_zero_3_is_one_line_and_leaves_nothing(flags: list[str], tmp_path: Path) -> None:
    settings = deepspeed_config(tmp_path, 3)
    done = launch([*flags, "--output", str(tmp_path / "runs"), "--compile", "True"], 1, settings)
    assert "--compile True does not go with ZeRO-3" in done.one_line()
    assert not list(tmp_path.rglob("config.yaml"))
