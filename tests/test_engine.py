import dataclasses

import pytest

from mvl_dist.config import OptimConfig
from mvl_dist.engine import learning_rate
from mvl_dist.metrics import metric_name


def test_the_papers_learning_rate_is_constant() -> None:
    assert {learning_rate(OptimConfig(), step, 10) for step in range(100)} == {2e-3}


def test_warm_up_rises_in_equal_steps_and_then_stays() -> None:
    optim = dataclasses.replace(OptimConfig(), lr=1.0, warmup_epochs=0.5)
    rates = [learning_rate(optim, step, steps_per_epoch=8) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_region_names_become_names_that_mlflow_takes() -> None:
    assert metric_name("non-enhancing tumor (NET)") == "non-enhancing tumor _NET_"
