"""The cost model against numbers that can be worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from mvl_dist.config import ModelConfig, RunConfig, smoke
from mvl_dist.errors import UserError
from mvl_dist.splits import make_split
from mvl_dist.study.command import main
from mvl_dist.study.cost import CostModel, Measured, Shape, case_counts, training_tflop
from tests.study.test_grid import OWN, write

GRID = (16, 16, 16)


def shape(**changes: object) -> Shape:
    model = ModelConfig(name="vit_baseline", patch=(8, 8, 8), width=16, heads=2, depth=2)
    return Shape(replace(model, **changes), 1, GRID)


def run_of(one: Shape) -> RunConfig:
    base = smoke()
    return replace(
        base,
        model=one.model,
        data=replace(base.data, task="Task04_Hippocampus", grid=GRID, channels="first"),
        optim=replace(base.optim, epochs=10, batch_size=4),
    )


@pytest.mark.parametrize(("cases", "fraction"), [(20, 1.0), (484, 0.3), (63, 0.1), (208, 1.0)])
def test_case_counts_are_those_of_the_split(cases: int, fraction: float) -> None:
    names = [f"case_{number}" for number in range(cases)]
    split = make_split(names, "T", 0, fraction)
    expected = len(split.train), len(split.validation), len(split.test)
    assert case_counts(cases, fraction) == expected


def test_a_measured_network_costs_what_it_was_measured_at() -> None:
    model = CostModel([Measured(shape(), 2.0, 1.0, 3.0)])
    estimate = model.estimate(run_of(shape()), {"Task04_Hippocampus": 20})
    # 20 cases: 2 test, 4 validate, 14 train, which are 16 in batches of 4.
    assert estimate.device_seconds == 10 * (16 * 2.0 + 4 * 1.0) + 2 * 3.0
    assert estimate.measured


def test_another_network_is_estimated_by_its_tflop_with_the_error_left_out_one_by_one() -> None:
    small, large = shape(), shape(depth=16)
    tflop = training_tflop(small), training_tflop(large)
    assert tflop[1] > 1.5 * tflop[0]
    model = CostModel(
        [Measured(small, tflop[0], 0.0, 0.0), Measured(large, 2 * tflop[1], 0.0, 0.0)]
    )
    # 1 and 2 seconds a TFLOP: each predicts the other off by 100 % and by 50 %.
    assert model.error == pytest.approx(0.75)
    other = shape(depth=3)
    estimate = model.estimate(run_of(other), {"Task04_Hippocampus": 20})
    assert estimate.device_seconds == pytest.approx(10 * 16 * 1.5 * training_tflop(other))
    assert not estimate.measured


def test_without_a_measured_run_the_speed_must_be_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", str(write(tmp_path, OWN)), "--output", str(tmp_path)]
    arguments += ["--where", "model=vit_baseline", "task=Task04", "fold=0", "fraction=1"]
    with pytest.raises(UserError, match=r"no run of this study was measured.*--assumed-tflops"):
        main(arguments)
    main([*arguments, "--assumed-tflops", "50"])
    printed = capsys.readouterr().out
    assert "1 of 1 runs are open" in printed
    assert "assumed: 50 TFLOP/s" in printed
