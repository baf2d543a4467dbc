"""Many models ranked as the Medical Segmentation Decathlon did, with bootstrap stability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mvl_dist.errors import UserError
from mvl_dist.metrics import higher_is_better
from mvl_dist.statistics import DECIMALS, LEVEL, MIN_CASES_FOR_TEST

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """A model's place among others.

    Attributes:
        mean_rank: mean of its ranks, 1 is the best; see `ranking`.
        interval: 2.5th and 97.5th percentile of it over the bootstrap samples.
        first: share of the bootstrap samples in which it has the best mean rank, shared by ties.
        beats: models that it is significantly better than, averaged like the ranks.
    """

    model: str
    mean_rank: float
    interval: tuple[float, float]
    first: float
    beats: float


@dataclass(frozen=True)
class Ranking:
    """Models, the best first, and how far other cases would have changed their order.

    Attributes:
        kendall_tau: mean Kendall tau between this ranking and those of the bootstrap samples; NaN
            where all models are level.
        cases: cases of each task that every model has.
        too_small: tasks with fewer than 5 of them, in which no model can beat another.
    """

    models: tuple[Ranked, ...]
    kendall_tau: float
    cases: dict[str, int]
    too_small: tuple[str, ...]


def ranking(
    scores: Mapping[tuple[str, str, str], Mapping[str, Mapping[str, float]]],
    resamples: int = 1000,
    seed: int = 0,
) -> Ranking:
    """Rank models as the Medical Segmentation Decathlon did, with bootstrap stability.

    For each task, region and metric a model beats another if a one-sided signed-rank test (normal
    approximation, 5 %) says so; models are ranked by how many they beat, ties share the mean of
    their ranks. Ranks are averaged over regions and metrics, then over tasks (Antonelli et al., Nat
    Commun 13:4128, 2022). A bootstrap sample draws cases anew within each task, the same for all
    models, regions and metrics.

    Args:
        scores: (task, region, metric) -> model -> case -> value (`per_case`). Only cases that all
            models have in every region and metric of a task count.

    Raises:
        UserError: fewer than two models, other models in one place than in another, or a task
            without a common case.
    """
    from scipy.stats import kendalltau

    if not scores:
        raise UserError("nothing to rank: no per-case values")
    models = sorted(next(iter(scores.values())))
    if len(models) < 2:
        raise UserError(f"a ranking takes two models or more, there is {', '.join(models)}")
    for place, of_model in scores.items():
        if sorted(of_model) != models:
            raise UserError(
                f"cannot rank: {' '.join(place)} has the models {', '.join(sorted(of_model))}, "
                f"another place has {', '.join(models)}"
            )
    generator = np.random.default_rng(seed)
    per_task, cases = [], {}
    for task in dict.fromkeys(task for task, _, _ in scores):
        places = [place for place in scores if place[0] == task]
        common = sorted(set.intersection(*(set(v) for p in places for v in scores[p].values())))
        if not common:
            raise UserError(f"cannot rank: the models have no case of {task} in common")
        cases[task] = len(common)
        # The cases themselves first, then what the bootstrap draws of them.
        drawn = generator.integers(len(common), size=(resamples, len(common)))
        drawn = np.concatenate([np.arange(len(common))[None], drawn])
        beaten = []
        for place in places:
            sign = 1 if higher_is_better(place[2]) else -1
            values = np.array([[scores[place][m][case] for case in common] for m in models])
            beaten.append(_models_beaten(sign * values, drawn))
        per_task.append([np.mean([_ranks(b) for b in beaten], axis=0), np.mean(beaten, axis=0)])
    ranks, beats = np.mean(per_task, axis=0)
    best = ranks[1:] == ranks[1:].min(axis=1, keepdims=True)
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    low, high = np.percentile(ranks[1:], [2.5, 97.5], axis=0)
    taus = [kendalltau(ranks[0], again).statistic for again in ranks[1:]]
    defined = [tau for tau in taus if not math.isnan(tau)]
    return Ranking(
        tuple(
            Ranked(
                models[i],
                float(ranks[0, i]),
                (float(low[i]), float(high[i])),
                float(first[i]),
                float(beats[0, i]),
            )
            for i in np.argsort(ranks[0], kind="stable")
        ),
        float(np.mean(defined)) if defined else math.nan,
        cases,
        tuple(task for task, n in cases.items() if n < MIN_CASES_FOR_TEST),
    )


def _models_beaten(values: Values, drawn: npt.NDArray[np.int64]) -> Values:
    """How many models each one beats: (M, n) values where more is better -> (samples, M)."""
    from scipy.stats import wilcoxon

    beaten = np.zeros((len(drawn), len(values)))
    if values.shape[1] < MIN_CASES_FOR_TEST:
        return beaten
    for one, of_one in enumerate(values):
        for other, of_other in enumerate(values[:one]):
            differences = np.round(of_one - of_other, DECIMALS)[drawn]
            p = wilcoxon(
                differences,
                zero_method="zsplit",
                alternative="greater",
                method="asymptotic",
                axis=1,
            ).pvalue
            beaten[:, one] += p < LEVEL
            beaten[:, other] += p > 1 - LEVEL  # the normal approximation is symmetric
    return beaten


def _ranks(beaten: Values) -> Values:
    """Ranks along the models, 1 for the one that beats most."""
    from scipy.stats import rankdata

    ranks: Values = rankdata(-beaten, axis=1)
    return ranks
