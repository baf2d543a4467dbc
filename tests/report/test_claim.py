"""The verdict follows from the numbers by its rule."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mvl_dist.report.claim import (
    QUESTIONS,
    Answer,
    Says,
    Verdict,
    answer,
    conclusion,
    effects,
    verdicts,
)
from mvl_dist.study.grid import StudyRun
from tests.report.logged import cases, log_study, spool, write_study
from tests.report.test_results import read


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (["better"], "yes"),
        (["better", "better", "no difference shown"], "yes"),
        (["better", "no difference shown"], "not shown"),  # not more than half
        (["better", "worse", "better"], "mixed"),
        (["worse", "worse", "n too small"], "no, worse"),
        (["no difference shown"], "not shown"),
        (["n too small", "not run"], "cannot be said"),
        ([], "cannot be said"),
    ],
)
def test_a_questions_answer(says: Sequence[Says], expected: Answer) -> None:
    assert answer(says) == expected


@pytest.mark.parametrize(
    ("block", "weights", "begins"),
    [
        ("yes", "yes", "Supported"),
        ("yes", "not shown", "Not supported by these runs: the block helps, but"),
        ("yes", "cannot be said", "Cannot be said: the block helps"),
        ("not shown", "yes", "Not supported"),
        ("no, worse", "yes", "Not supported by these runs: the block makes it worse"),
        ("cannot be said", "yes", "Cannot be said: the comparison of block"),
    ],
)
def test_the_claim_needs_both_halves(block: Answer, weights: Answer, begins: str) -> None:
    given = {"block": block, "weights": weights, "lora": "cannot be said"}
    judged = [Verdict(question, given[question.key], "") for question in QUESTIONS]
    assert conclusion(judged).startswith(begins)


def judged(folder: Path, count: int, shifts: dict[str, float]) -> tuple[str, dict[str, Verdict]]:
    """The verdict on runs whose models lie apart by known shifts, with some noise."""
    noise = dict(zip(cases(count), np.random.default_rng(0).normal(0, 0.005, count), strict=True))

    def values(run: StudyRun) -> dict[str, float] | None:
        if run.label not in shifts:
            return None
        own = np.random.default_rng(len(run.label)).normal(0, 0.005, count)
        shifted = cases(count, shifts[run.label])
        return {c: d + noise[c] + o for (c, d), o in zip(shifted.items(), own, strict=True)}

    study = log_study(folder / "runs", spool(folder / "runs"), write_study(folder), values)
    results = read(folder, study)
    found = verdicts(results, effects(results))
    return conclusion(found), {verdict.question.key: verdict for verdict in found}


def test_a_block_that_helps_by_its_weights_supports_the_claim(tmp_path: Path) -> None:
    said, of = judged(
        tmp_path, 20, {"ViT-Baseline": 0.0, "random block": 0.0, "MedVisionLlama": 0.05}
    )
    assert said.startswith("Supported")
    assert of["block"].answer == of["weights"].answer == "yes"
    assert "n=20" in of["block"].sentence
    assert of["lora"].answer == "cannot be said"
    assert "no finished run of MedVisionLlama (Linear)" in of["lora"].sentence


def test_a_block_that_helps_with_any_weights_does_not(tmp_path: Path) -> None:
    said, of = judged(
        tmp_path, 20, {"ViT-Baseline": 0.0, "random block": 0.05, "MedVisionLlama": 0.05}
    )
    assert of["block"].answer == "yes"
    assert of["weights"].answer == "not shown"
    assert said.startswith("Not supported by these runs: the block helps, but pre-trained")


def test_without_the_control_it_cannot_be_said_and_is_preliminary(tmp_path: Path) -> None:
    said, of = judged(tmp_path, 20, {"ViT-Baseline": 0.0, "MedVisionLlama": 0.05})
    assert said.startswith("Cannot be said: the block helps")
    assert "no finished run of random block" in of["weights"].sentence
    assert "Preliminary" in said


def test_nine_cases_are_too_few(tmp_path: Path) -> None:
    said, of = judged(
        tmp_path, 9, {"ViT-Baseline": 0.0, "random block": 0.0, "MedVisionLlama": 0.2}
    )
    assert said.startswith("Cannot be said")
    assert "n too small (at most 9 cases a task; 10 are needed)" in of["block"].sentence
