"""Which cases train, validate and test: decided by seed and case name alone.

The paper describes 70/20/10 and '5 non-overlapping 20% validation sets' at once, which leaves
nothing for the test. Here 10 % is held out once per task, and five folds share the other 90 %.
Each case draws a number from a hash of (seed, task, case); sorting by it replaces shuffling, so
neither directory order nor the random generator of a library version can move a case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from mvl_dist.errors import UserError

NUM_FOLDS = 5
TEST_FRACTION = 0.1


@dataclass(frozen=True)
class Split:
    """The cases of one fold; `train` is ordered so that a smaller fraction is its beginning."""

    task: str
    fold: int
    fraction: float
    seed: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain data for the run's artifacts."""
        return asdict(self)


def _draw(purpose: str, seed: int, task: str, case: str) -> str:
    return hashlib.sha256(f"{purpose}/{seed}/{task}/{case}".encode()).hexdigest()


def _ordered(purpose: str, cases: Iterable[str], task: str, seed: int) -> list[str]:
    return sorted(cases, key=lambda case: (_draw(purpose, seed, task, case), case))


def held_out_cases(cases: Sequence[str], task: str, seed: int) -> tuple[str, ...]:
    """The test set: a tenth of the cases (rounded down, at least one), held out once per task.

    Raises:
        UserError: fewer cases than a test set and five folds need, or a name given twice.
    """
    if len(set(cases)) != len(cases):
        twice = sorted({case for case in cases if list(cases).count(case) > 1})
        raise UserError(f"{task}: case names occur twice: {', '.join(twice[:5])}")
    if len(cases) < NUM_FOLDS + 1:
        raise UserError(
            f"{task}: {len(cases)} cases; a test set and {NUM_FOLDS} folds need at least "
            f"{NUM_FOLDS + 1}"
        )
    count = max(1, int(len(cases) * TEST_FRACTION))
    return tuple(_ordered("test", cases, task, seed)[:count])


def make_split(
    cases: Sequence[str], task: str, fold: int, fraction: float = 1.0, seed: int = 0
) -> Split:
    """Split the cases of a task for one fold.

    Args:
        cases: all case names of the task, in any order.
        fold: 0 to 4, which fifth of the remaining cases validates.
        fraction: part of the training cases that is used (the paper's few-shot 0.1 and 0.3); a
            smaller fraction is contained in every larger one, and at least one case is kept.

    Raises:
        UserError: fold or fraction out of range, or too few cases.
    """
    if not 0 <= fold < NUM_FOLDS:
        raise UserError(f"fold {fold} does not exist: --fold takes 0 to {NUM_FOLDS - 1}")
    if not 0 < fraction <= 1:
        raise UserError(f"fraction {fraction} is out of range: --fraction takes more than 0 to 1")
    test = held_out_cases(cases, task, seed)
    rest = _ordered("fold", set(cases) - set(test), task, seed)
    validation = rest[fold::NUM_FOLDS]
    train = _ordered("fraction", set(rest) - set(validation), task, seed)
    kept = max(1, round(len(train) * fraction))
    return Split(task, fold, fraction, seed, tuple(train[:kept]), tuple(validation), test)
