"""What per-case values say about two models, or about many: pure functions on plain rows.

A case is the unit. The models of five folds that score the same test cases are not five times as
many cases: counted so, a third of comparisons finds a difference where there is none. So values are
averaged over folds and seeds for each case first (`per_case`), then compared (`compare`), and
p-values are corrected over all comparisons that were declared together (`holm`). The figures behind
each rule: benchmarks/statistics_rules.py.

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

Row = Mapping[str, Any]
Values = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

# The smallest p that a two-sided signed-rank test of four cases can give is 0.125, of five 0.0625:
# a comparison of fewer than five lists its cases.
MIN_CASES_FOR_TEST = 5
# A bootstrap of fewer has little to draw from, and covers the truth too seldom.
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


def listed(paired: Paired) -> Sequence[str]:
    """The cases of a comparison that is too small for a test, one line each; else nothing."""
    if paired.n >= MIN_CASES_FOR_TEST:
        return ()
    return [f"{case} {difference:+.3f}" for case, difference in paired.differences.items()]
