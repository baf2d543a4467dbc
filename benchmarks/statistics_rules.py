"""What goes wrong without each rule of mvl_dist/statistics.py, by simulation.

From the repository's root: `python -m benchmarks.statistics_rules` (half a minute).
"""

from __future__ import annotations

import warnings

import numpy as np
import scipy.stats

from mvl_dist.statistics import RESAMPLES, compare, holm

STUDIES = 2000
# Held-out tenths of the ten tasks.
TEST_CASES = (48, 2, 13, 26, 3, 6, 28, 30, 4, 12)


def folds_counted_as_cases(generator: np.random.Generator) -> None:
    for noise in (0.5, 1.0, 2.0):
        cases = generator.normal(size=(STUDIES, 26, 1))
        values = cases + noise * generator.normal(size=(STUDIES, 26, 5))
        pooled = scipy.stats.wilcoxon(values.reshape(STUDIES, -1), axis=1).pvalue
        averaged = scipy.stats.wilcoxon(values.mean(axis=2), axis=1).pvalue
        print(
            f"  noise between folds {noise:g} x that between cases: false alarms at 5 % "
            f"{(pooled < 0.05).mean():6.1%} as 130 cases, {(averaged < 0.05).mean():5.1%} averaged"
        )


def many_tests(generator: np.random.Generator) -> None:
    """Six metrics of a task share half of their variance."""
    starred = corrected = 0
    studies = 200
    for _ in range(studies):
        p: dict[tuple[int, int], float | None] = {}
        for task, n in enumerate(TEST_CASES):
            shared = generator.normal(size=n)
            for metric in range(6):
                values = shared + generator.normal(size=n)
                p[task, metric] = float(scipy.stats.ttest_1samp(values, 0).pvalue)
        starred += min(value for value in p.values() if value is not None) < 0.05
        corrected += min(value for value in holm(p).values() if value is not None) < 0.05
    print(
        f"  60 paired t-tests without any effect: {starred / studies:.0%} of {studies} papers star "
        f"something, {corrected / studies:.0%} with Holm's correction"
    )


def gross_failures(generator: np.random.Generator) -> None:
    """Dice rises by 0.02 in every case; 6 % of cases fail in one model or the other."""
    for n in (6, 13, 26):
        values = 0.02 + 0.02 * generator.normal(size=(STUDIES, n))
        failed = generator.random((STUDIES, n)) < 0.06
        values += (
            failed
            * generator.uniform(0.3, 0.8, (STUDIES, n))
            * generator.choice([-1, 1], (STUDIES, n))
        )
        t = scipy.stats.ttest_1samp(values, 0, axis=1).pvalue
        w = scipy.stats.wilcoxon(values, axis=1).pvalue
        print(
            f"  n = {n:2d}: the gain is found in {(t < 0.05).mean():4.0%} of studies by the paired "
            f"t-test, in {(w < 0.05).mean():4.0%} by the signed-rank test"
        )


def smallest_p() -> None:
    shown = (
        f"n = {n}: {scipy.stats.wilcoxon(np.arange(1.0, n + 1)).pvalue:.4f}"
        for n in (2, 3, 4, 5, 6)
    )
    print(f"  {', '.join(shown)}")


def coverage(generator: np.random.Generator) -> None:
    """Skewed differences: the interval of `compare`, and what it would be below n = 10."""
    studies = 400
    for n in (4, 6, 8, 10, 13, 26):
        covered = 0
        for index in range(studies):
            values = generator.exponential(size=n)
            if n >= 10:
                cases = {f"{i}": float(value) for i, value in enumerate(values)}
                interval = compare(dict.fromkeys(cases, 0.0), cases, seed=index).interval
                low, high = interval or (np.nan, np.nan)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    low, high = scipy.stats.bootstrap(
                        (values,), np.median, n_resamples=RESAMPLES, rng=index
                    ).confidence_interval
            covered += low <= np.log(2) <= high
        kept = "" if n >= 10 else "  (not given)"
        print(
            f"  n = {n:2d}: a 95 % interval of the median covers it in "
            f"{covered / studies:.0%}{kept}"
        )


def main() -> None:
    generator = np.random.default_rng(0)
    print(f"numpy {np.__version__}, scipy {scipy.__version__}, seed 0, {STUDIES} studies each")
    print("Folds counted as cases (26 cases, 5 folds, no effect)")
    folds_counted_as_cases(generator)
    print("Many tests (ten tasks, six metrics)")
    many_tests(generator)
    print("Gross failures (true gain 0.02 of Dice)")
    gross_failures(generator)
    print("Smallest two-sided p that a signed-rank test can give")
    smallest_p()
    print("BCa intervals")
    coverage(generator)


if __name__ == "__main__":
    main()
