"""What per-case values say about two models, or about many: pure functions on plain rows.

A case is the unit. The models of five folds that score the same test cases are not five times as
many cases: counting them so finds a difference in 41 % of comparisons where there is none. So
values are averaged over folds and seeds for each case first (`per_case`), then compared
(`compare`), and p-values are corrected over all comparisons that were declared together (`holm`).

`out_of_fold` puts the validation cases of all folds together instead: every case of a task, each
scored once by a model that has not seen it, which gives up to ten times as many cases as the test
set.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mvl_dist.errors import UserError
from mvl_dist.metrics import higher_is_better

Row = Mapping[str, Any]
Values = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

# With fewer cases the smallest possible two-sided p of a signed-rank test is above 0.05: such a
# comparison lists its cases.
MIN_CASES_FOR_TEST = 5
# Below ten cases a 95 % bootstrap interval covers the truth in 81 to 93 % of samples.
MIN_CASES_FOR_INTERVAL = 10
RESAMPLES = 9999
LEVEL = 0.05
# Averages of the same numbers in another order differ in the last bits; a tie must stay a tie.
DECIMALS = 12


@dataclass(frozen=True)
class Paired:
    """Two models on the same cases.

    Attributes:
        n: cases.
        median_difference: second minus first, of the values averaged over folds and seeds.
        interval: 95 % BCa bootstrap interval of it; None for n < 10.
        wins: cases in which the second is better.
        losses: cases in which it is worse.
        ties: cases in which both are level.
        wilcoxon_p: two-sided signed-rank test, zero differences split between the signs; None for
            n < 5, 1 if all differences are zero.
        t_test_p: two-sided paired t-test, the paper's; None for n < 2.
        differences: second minus first by case, sorted by case.
    """

    n: int
    median_difference: float
    interval: tuple[float, float] | None
    wins: int
    losses: int
    ties: int
    wilcoxon_p: float | None
    t_test_p: float | None
    differences: dict[str, float]


def per_case(rows: Iterable[Row], metric: str, region: str) -> dict[str, float]:
    """A model's value for each case, averaged over folds and seeds; sorted by case.

    Args:
        rows: per-case rows of the runs of one model: `case`, `region`, the metric, and `task`,
            `model`, `fold`, `seed` where they are known. NaN (None in MLflow's tables) is
            undefined and left out; a case without any defined value too.

    Raises:
        UserError: no row of that region, rows without that metric, rows of several tasks or models,
            or a case that occurs twice for one fold and seed.
    """
    rows = list(rows)
    chosen = [row for row in rows if row["region"] == region]
    if not chosen:
        there = ", ".join(sorted({str(row["region"]) for row in rows})) or "none"
        raise UserError(f"no per-case rows of region '{region}'; there are: {there}")
    for key in ("task", "model"):
        found = {row[key] for row in chosen if key in row}
        if len(found) > 1:
            raise UserError(
                f"per-case rows of several {key}s ({', '.join(sorted(map(str, found)))}) cannot be "
                f"averaged: pass those of one {key}"
            )
    values: dict[str, list[float]] = {}
    seen = set()
    for row in chosen:
        if metric not in row:
            raise UserError(f"per-case rows have no '{metric}'; they have {', '.join(row)}")
        scored = (row["case"], row.get("fold"), row.get("seed"))
        if scored in seen:
            raise UserError(
                f"case {scored[0]} occurs twice for fold {scored[1]}, seed {scored[2]}: these rows "
                "are of more than one run of a fold (another variant, fraction or split?)"
            )
        seen.add(scored)
        value = _number(row[metric])
        if not math.isnan(value):
            values.setdefault(str(row["case"]), []).append(value)
    return {case: float(np.mean(values[case])) for case in sorted(values)}


def out_of_fold(rows: Iterable[Row]) -> list[Row]:
    """Validation rows of several folds as one set in which a seed scores every case once.

    Args:
        rows: as for `per_case`, of `mvl evaluate --split validation` of each fold.

    Raises:
        UserError: rows of test cases, or a case that two folds validated (of two splits then).
    """
    rows = list(rows)
    folds: dict[tuple[Any, ...], Any] = {}
    for row in rows:
        if row.get("split", "validation") != "validation":
            raise UserError(
                f"case {row['case']} is a {row['split']} case: out-of-fold scores are of 'mvl "
                "evaluate RUN --split validation'"
            )
        scored = tuple(row.get(key) for key in ("task", "model", "seed", "case"))
        if folds.setdefault(scored, row["fold"]) != row["fold"]:
            raise UserError(
                f"case {row['case']} is validated by fold {folds[scored]} and by fold "
                f"{row['fold']}: these runs are not of one split"
            )
    return rows


def between_seeds(rows: Iterable[Row], metric: str, region: str) -> tuple[float, int]:
    """Standard deviation over seeds of a model's mean over cases, and the number of seeds.

    The second source of variance beside the cases; NaN for fewer than two seeds.
    """
    by_seed: dict[Any, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(row.get("seed"), []).append(row)
    means = [
        float(np.mean(list(values.values())))
        for values in (per_case(of_seed, metric, region) for of_seed in by_seed.values())
        if values
    ]
    return (float(np.std(means, ddof=1)) if len(means) > 1 else math.nan), len(means)


def compare(
    first: Mapping[str, float],
    second: Mapping[str, float],
    higher_is_better: bool = True,
    seed: int = 0,
) -> Paired:
    """Compare two models on the cases that both have.

    Args:
        first: a value by case, as `per_case` gives them.
        second: likewise.
        higher_is_better: what counts as a win; differences keep their sign.
        seed: of the bootstrap.

    Raises:
        UserError: no case that both have.
    """
    cases = sorted(first.keys() & second.keys())
    if not cases:
        raise UserError(
            f"nothing to compare: the {len(first)} cases of the first model and the {len(second)} "
            "of the second have none in common"
        )
    differences = np.round([second[case] - first[case] for case in cases], DECIMALS)
    better = differences if higher_is_better else -differences
    return Paired(
        n=len(cases),
        median_difference=float(np.median(differences)),
        interval=_interval(differences, seed) if len(cases) >= MIN_CASES_FOR_INTERVAL else None,
        wins=int((better > 0).sum()),
        losses=int((better < 0).sum()),
        ties=int((better == 0).sum()),
        wilcoxon_p=_wilcoxon(differences) if len(cases) >= MIN_CASES_FOR_TEST else None,
        t_test_p=_t_test(differences) if len(cases) > 1 else None,
        differences=dict(zip(cases, map(float, differences), strict=True)),
    )


def holm(p_values: Mapping[K, float | None]) -> dict[K, float | None]:
    """Holm's correction over a declared family: adjusted p-values in the same order.

    Comparisons without a test (None) stay so and do not count.
    """
    from statsmodels.stats.multitest import (  # type: ignore[import-untyped]  # 1.2 s
        multipletests,
    )

    tested = [key for key, p in p_values.items() if p is not None]
    adjusted: dict[K, float | None] = dict.fromkeys(p_values)
    if tested:
        corrected = multipletests([p_values[key] for key in tested], method="holm")[1]
        adjusted |= {key: float(p) for key, p in zip(tested, corrected, strict=True)}
    return adjusted


def _number(value: Any) -> float:
    """A metric from a row; None and '' are how JSON and CSV tables write NaN."""
    return math.nan if value is None or value == "" else float(value)


def _wilcoxon(differences: Values) -> float:
    from scipy.stats import wilcoxon

    if not differences.any():
        return 1.0
    # Exact to 50 cases without ties and to 13 with them, else the normal approximation.
    return float(wilcoxon(differences, zero_method="zsplit", method="auto").pvalue)


def _t_test(differences: Values) -> float:
    from scipy.stats import ttest_1samp

    if not differences.any():
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0  # t is infinite
    return float(ttest_1samp(differences, 0.0).pvalue)


def _interval(differences: Values, seed: int) -> tuple[float, float]:
    """95 % BCa interval of the median.

    Where ties hold the median still whichever case is left out, BCa's acceleration is 0 / 0; the
    interval is the percentile bootstrap's then.
    """
    from scipy.stats import bootstrap

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scipy warns of the same 0 / 0
            low, high = bootstrap(
                (differences,),
                np.median,
                n_resamples=RESAMPLES,
                confidence_level=1 - LEVEL,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(low) and math.isfinite(high):
            break
    return float(low), float(high)


# ---------------------------------------------------------------------------------------- ranking


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
        for other, of_other in enumerate(values):
            if one == other:
                continue
            differences = np.round(of_one - of_other, DECIMALS)[drawn]
            p = wilcoxon(
                differences,
                zero_method="zsplit",
                alternative="greater",
                method="asymptotic",
                axis=1,
            ).pvalue
            beaten[:, one] += p < LEVEL
    return beaten


def _ranks(beaten: Values) -> Values:
    """Ranks along the models, 1 for the one that beats most."""
    from scipy.stats import rankdata

    ranks: Values = rankdata(-beaten, axis=1)
    return ranks


def listed(paired: Paired) -> Sequence[str]:
    """The cases of a comparison that is too small for a test, one line each; else nothing."""
    if paired.n >= MIN_CASES_FOR_TEST:
        return ()
    return [f"{case} {difference:+.3f}" for case, difference in paired.differences.items()]
