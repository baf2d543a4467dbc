"""Rankings of simulated models whose order is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mvl_dist.errors import UserError
from mvl_dist.ranking import ranking


def by_case(values: np.ndarray) -> dict[str, float]:
    return {f"case_{index:03d}": float(value) for index, value in enumerate(values)}


def study(levels: dict[str, float], n: int, noise: float = 0.05) -> dict:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=n)
    scores = {
        (task, region, metric): {
            model: by_case(sign * (difficulty + level + noise * generator.normal(size=n)))
            for model, level in levels.items()
        }
        for task in ("T1", "T2")
        for region in ("organ", "lesion")
        for metric, sign in (("dice", 1), ("hd95_mm", -1))
    }
    return scores


def test_models_that_differ_clearly_rank_in_their_order_in_every_sample() -> None:
    ranked = ranking(study({"worst": 0.0, "best": 1.0, "middle": 0.5}, n=20), resamples=50)
    assert [model.model for model in ranked.models] == ["best", "middle", "worst"]
    assert [model.mean_rank for model in ranked.models] == [1, 2, 3]
    assert [model.beats for model in ranked.models] == [2, 1, 0]
    assert [model.first for model in ranked.models] == [1, 0, 0]
    assert ranked.models[0].interval == (1, 1)
    assert ranked.kendall_tau == pytest.approx(1)
    assert (ranked.cases, ranked.too_small) == ({"T1": 20, "T2": 20}, ())


def test_models_that_hardly_differ_share_their_ranks_and_the_order_is_not_stable() -> None:
    levels = {"a": 0.0, "b": 0.05, "c": 0.0, "d": 0.1}
    ranked = ranking(study(levels, n=20, noise=1.0), resamples=100)
    assert all(1.5 < model.mean_rank < 3.5 for model in ranked.models)
    assert max(model.first for model in ranked.models) < 0.9
    assert ranked.kendall_tau < 0.8


def test_a_task_of_four_cases_ranks_nobody() -> None:
    ranked = ranking(study({"worst": 0.0, "best": 1.0}, n=4), resamples=10)
    assert [model.mean_rank for model in ranked.models] == [1.5, 1.5]
    assert ranked.too_small == ("T1", "T2")
    assert math.isnan(ranked.kendall_tau)


def test_what_cannot_be_ranked_is_refused() -> None:
    scores = study({"a": 0.0, "b": 1.0}, n=6)
    for broken, says in (
        ({}, "nothing to rank"),
        ({("T", "r", "dice"): {"a": {"x": 1.0}}}, "two models or more"),
        ({**scores, ("T3", "r", "dice"): {"a": {}, "c": {}}}, "T3 r dice has the models a, c"),
        ({("T", "r", "dice"): {"a": {"x": 1.0}, "b": {"y": 1.0}}}, "no case of T in common"),
    ):
        with pytest.raises(UserError, match=says):
            ranking(broken)
