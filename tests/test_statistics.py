"""Comparisons of models: closed forms, scipy, statsmodels' rule by hand, and simulated studies."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats

from mvl_dist.errors import UserError
from mvl_dist.statistics import between_seeds, compare, holm, listed, out_of_fold, per_case

REGION = "whole"


def row(case: str, value: float | None, **other: object) -> dict[str, object]:
    return {"task": "T", "case": case, "region": REGION, "dice": value, **other}


def cases(values: list[float] | np.ndarray) -> dict[str, float]:
    return {f"case_{index:03d}": float(value) for index, value in enumerate(values)}


# --- per case ---


def test_values_are_averaged_over_folds_and_seeds_for_each_case() -> None:
    rows = [
        row(case, value, fold=fold, seed=seed)
        for case, values in {"b": (0.1, 0.2, 0.3, 0.6), "a": (1, 1, 1, 0)}.items()
        for value, (fold, seed) in zip(values, [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True)
    ]
    averaged = per_case([*rows, row("a", 0.5) | {"region": "other"}], "dice", REGION)
    assert averaged == pytest.approx({"a": 0.75, "b": 0.3})
    assert list(averaged) == ["a", "b"]


def test_undefined_values_are_left_out_however_a_table_writes_them() -> None:
    rows = [
        row("a", math.nan, fold=0),
        row("a", 0.5, fold=1),
        row("b", None, fold=0),
        row("c", "", fold=0),  # type: ignore[arg-type]
        row("d", "0.25", fold=0),  # type: ignore[arg-type]
    ]
    assert per_case(rows, "dice", REGION) == {"a": 0.5, "d": 0.25}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a", 1)] * 2, "a occurs twice"),
        ([row("a", 1, model="x"), row("b", 1, model="y")], "several models"),
        ([row("a", 1), row("b", 1) | {"task": "U"}], "several tasks"),
        ([row("a", 1) | {"region": "lesion"}], "no per-case rows of region 'whole'.*lesion"),
        ([{"task": "T", "case": "a", "region": REGION}], "no 'dice'"),
        ([], "no per-case rows"),
    ],
)
def test_rows_that_cannot_be_averaged_are_refused(rows: list, says: str) -> None:
    with pytest.raises(UserError, match=says):
        per_case(rows, "dice", REGION)


def test_folds_together_score_every_case_once() -> None:
    rows = [
        row(case, 0.5, fold=fold, seed=seed, split="validation")
        for seed in (0, 1)
        for fold, of_fold in enumerate(("ab", "cd", "ef"))
        for case in of_fold
    ]
    assert sorted(per_case(out_of_fold(rows), "dice", REGION)) == list("abcdef")
    with pytest.raises(UserError, match="case a is validated by fold 0 and by fold 2"):
        out_of_fold([*rows, row("a", 0.5, fold=2, seed=0)])
    with pytest.raises(UserError, match="case x is a test case"):
        out_of_fold([row("x", 0.5, fold=0, split="test")])


def test_the_spread_between_seeds_is_that_of_their_means() -> None:
    rows = [
        row(case, level + offset, seed=seed)
        for seed, level in enumerate((0.5, 0.6, 0.9))
        for case, offset in (("a", 0.0), ("b", 0.1))
    ]
    std, n = between_seeds(rows, "dice", REGION)
    assert (std, n) == (pytest.approx(np.std([0.5, 0.6, 0.9], ddof=1)), 3)
    assert math.isnan(between_seeds(rows[:2], "dice", REGION)[0])


# --- two models ---


def test_a_comparison_agrees_with_scipy_on_the_cases_that_both_have() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.random(26), generator.random(26) + 0.1
    one, two = cases(first), cases(second) | {"only here": 0.0}
    paired = compare(one, two)
    assert paired.n == 26
    assert paired.wilcoxon_p == pytest.approx(scipy.stats.wilcoxon(second, first).pvalue)
    assert paired.t_test_p == pytest.approx(scipy.stats.ttest_rel(second, first).pvalue)
    assert paired.median_difference == pytest.approx(np.median(second - first))
    assert (paired.wins, paired.losses, paired.ties) == (
        (second > first).sum(),
        (second < first).sum(),
        0,
    )
    low, high = paired.interval or (math.nan, math.nan)
    assert low < paired.median_difference < high


def test_all_wins_of_five_cases_have_the_exact_p_of_one_in_sixteen() -> None:
    paired = compare(cases([0.1, 0.2, 0.3, 0.4, 0.5]), cases([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert paired.wilcoxon_p == pytest.approx(2 / 2**5)
    assert paired.interval is None


def test_with_ties_the_p_of_a_small_sample_is_that_of_all_sign_flips() -> None:
    values = np.array([0.1, 0.1, 0.1, 0.2, -0.1, 0.3])
    ranks = scipy.stats.rankdata(abs(values))
    flips = np.array(np.meshgrid(*[(-1, 1)] * 6)).reshape(6, -1)
    sums = abs(ranks @ flips)
    expected = (sums >= abs(ranks @ np.sign(values)) - 1e-9).mean()
    assert compare(cases(0 * values), cases(values)).wilcoxon_p == pytest.approx(expected)


def test_fewer_than_five_cases_are_listed_and_not_tested() -> None:
    paired = compare(cases([0.5, 0.5, 0.5, 0.5]), cases([0.6, 0.7, 0.8, 0.4]))
    assert paired.wilcoxon_p is None
    assert paired.t_test_p is not None  # as the paper does
    assert listed(paired)[-1] == "case_003 -0.100"
    assert len(listed(paired)) == 4
    assert not listed(compare(cases([0.5] * 5), cases([0.6] * 5)))


def test_equal_models_are_equal() -> None:
    paired = compare(cases([0.1 + 0.2] * 12), cases([0.3] * 12))  # equal but for the last bit
    assert (paired.wins, paired.losses, paired.ties) == (0, 0, 12)
    assert (paired.wilcoxon_p, paired.t_test_p, paired.interval) == (1, 1, (0, 0))


def test_a_shorter_distance_is_a_win_and_the_difference_keeps_its_sign() -> None:
    paired = compare(cases([5.0, 4.0]), cases([3.0, 6.0]), higher_is_better=False)
    assert (paired.wins, paired.losses) == (1, 1)
    assert paired.differences == {"case_000": -2.0, "case_001": 2.0}


def test_a_constant_gain_is_certain() -> None:
    paired = compare(cases([0.5] * 20), cases([0.75] * 20))
    assert paired.interval == (0.25, 0.25)
    assert paired.t_test_p == 0
    assert paired.wilcoxon_p is not None
    assert paired.wilcoxon_p < 1e-3


def test_a_median_that_ties_hold_still_has_an_interval() -> None:
    values = [0.0] * 9 + [0.1, 0.2, -0.3, 0.4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = compare(cases([0.0] * 13), cases(values)).interval or (math.nan, math.nan)
    assert low <= 0 <= high


def test_models_without_a_common_case_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="none in common"):
        compare({"a": 1.0}, {"b": 1.0})


def test_intervals_cover_the_true_median_in_nineteen_of_twenty_samples() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for index in range(100):
        values = generator.exponential(size=20)  # skewed, as differences of Dice are
        low, high = compare(cases(0 * values), cases(values), seed=index).interval or (0.0, 0.0)
        covered += low <= math.log(2) <= high
    assert 0.90 <= covered / 100 <= 0.99


# --- many comparisons ---


def test_holm_steps_down_through_the_family() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None, "e": 0.9})
    # Sorted 0.01 x 4, 0.03 x 3, 0.04 x 2, 0.9 x 1, never falling.
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": None, "e": 0.9})
    assert list(adjusted) == list("abcde")
    assert holm({"a": None}) == {"a": None}


def test_folds_counted_as_cases_raise_false_alarms_and_averages_do_not() -> None:
    """No model is better, each case favours one by chance, and five folds repeat that."""
    generator = np.random.default_rng(0)
    pooled = averaged = 0
    studies = 250
    for _ in range(studies):
        by_case = generator.normal(size=9)[:, None] + 0.5 * generator.normal(size=(9, 5))
        rows = [
            row(f"{case}", by_case[case, fold], fold=fold) for case in range(9) for fold in range(5)
        ]
        values = per_case(rows, "dice", REGION)
        p = compare(dict.fromkeys(values, 0.0), values).wilcoxon_p
        averaged += p is not None and p < 0.05
        pooled += scipy.stats.wilcoxon(by_case.ravel()).pvalue < 0.05
    assert averaged / studies < 0.08
    assert pooled / studies > 0.3
