"""ZeRO 0 to 3 on two ranks against one rank: the same training, partitioned."""

from pathlib import Path

import pytest

from tests.system.launching import (
    always_gathering,
    curve,
    deepspeed_config,
    launch,
    run_folder,
    tags,
)

pytestmark = pytest.mark.tworank

# Sums over ranks are formed in another order: float32 rounding, grown over the steps.
RELATIVE_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def without_dropout(arguments: list[str]) -> list[str]:
    # A rank draws its own dropout, so one rank and two can only agree without.
    return [*arguments, "--dropout", "0", "--epochs", "3"]


@pytest.fixture(scope="module")
def one_rank(without_dropout: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one")
    done = launch([*without_dropout, "--output", str(output)], 1, deepspeed_config(output, 0))
    assert done.code == 0, done.errors
    return output


@pytest.mark.parametrize("stage", ["0", "1", "2", "3", "3-offload"])
def test_two_ranks_with_zero_follow_the_curve_of_one_rank(
    stage: str, without_dropout: list[str], one_rank: Path, tmp_path: Path
) -> None:
    config = deepspeed_config(tmp_path, stage)
    if stage[0] == "3":
        always_gathering(config)
    done = launch([*without_dropout, "--output", str(tmp_path)], 2, config)
    assert done.code == 0, done.errors
    assert f"2 ranks, DeepSpeed ZeRO-{stage[0]}" in done.output
    assert (tags(tmp_path)["zero_stage"], tags(tmp_path)["world_size"]) == (stage[0], "2")
    for key in ("train_loss", "grad_norm", "val_loss"):
        expected = curve(one_rank, key)
        assert len(expected) == (3 if key == "val_loss" else 9)
        assert curve(tmp_path, key) == pytest.approx(expected, rel=RELATIVE_TOLERANCE), key
    last = run_folder(tmp_path) / "checkpoints" / "step-00000009"
    # DeepSpeed did partition: each rank writes what it alone holds.
    assert len(list(last.glob("*optim_states.pt"))) == (0 if stage == "0" else 2)
    assert len(list(last.glob("*model_states.pt"))) == (2 if stage[0] == "3" else 1)
