import random

import pytest

from mvl_dist.errors import UserError
from mvl_dist.splits import NUM_FOLDS, held_out_cases, make_split

CASES = [f"case_{number:03d}" for number in range(131)]


@pytest.mark.parametrize(
    ("released", "held_out"),
    [
        (484, 48),
        (20, 2),
        (131, 13),
        (260, 26),
        (32, 3),
        (63, 6),
        (281, 28),
        (303, 30),
        (41, 4),
        (126, 12),
    ],
)
def test_a_tenth_is_held_out(released: int, held_out: int) -> None:
    cases = [f"c{number}" for number in range(released)]
    assert len(held_out_cases(cases, "Task", seed=0)) == held_out


def test_no_case_is_on_two_sides_and_none_is_lost() -> None:
    for fold in range(NUM_FOLDS):
        split = make_split(CASES, "Task", fold)
        parts = [set(split.train), set(split.validation), set(split.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(CASES)


def test_every_case_that_is_not_tested_validates_in_exactly_one_fold() -> None:
    splits = [make_split(CASES, "Task", fold) for fold in range(NUM_FOLDS)]
    validated = [case for split in splits for case in split.validation]
    assert sorted(validated) == sorted(set(CASES) - set(splits[0].test))
    assert len({split.test for split in splits}) == 1


def test_smaller_fractions_are_contained_in_larger_ones() -> None:
    ten, thirty, full = (set(make_split(CASES, "T", 0, f).train) for f in (0.1, 0.3, 1.0))
    assert ten < thirty < full
    assert (len(ten), len(thirty)) == (round(0.1 * len(full)), round(0.3 * len(full)))


def test_directory_order_does_not_matter_and_the_seed_does() -> None:
    shuffled = random.Random(1).sample(CASES, len(CASES))
    assert make_split(shuffled, "Task", 2, 0.3) == make_split(CASES, "Task", 2, 0.3)
    assert make_split(CASES, "Task", 2, seed=1).test != make_split(CASES, "Task", 2).test


def test_a_case_more_moves_hardly_any_other() -> None:
    before = set(held_out_cases(CASES, "Task", 0))
    after = set(held_out_cases([*CASES, "case_new"], "Task", 0))
    assert len(before ^ after) <= 2


@pytest.mark.parametrize(
    ("fold", "fraction", "count", "reason"),
    [(5, 1.0, 20, "fold 5"), (0, 0.0, 20, "fraction"), (0, 1.5, 20, "fraction"), (0, 1.0, 5, "5")],
)
def test_what_cannot_be_split_is_refused(
    fold: int, fraction: float, count: int, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        make_split(CASES[:count], "Task", fold, fraction)
