"""'Is the claim supported?': effects computed from the runs, and a sentence by a stated rule.

The claim is that a frozen block with pre-trained language-model weights makes the ViT segment
better. It has two halves: the block against none, and pre-trained weights against random ones in
the same block. LoRA against linear mappers is the paper's further question.

The rule, for a question (second model against first, Dice, per case, native grid):
  a task says      nothing      with fewer than 10 cases that both models have
                   better       Holm-corrected Wilcoxon p < 0.05 and the interval of the median
                   or worse     difference lies wholly above (below) 0
                   no difference shown   otherwise
  the question is  cannot be said   if no task says anything
                   yes             if more than half of those that do say better, and none worse
                   no, worse       the other way round
                   mixed           if some say better and some worse
                   not shown       otherwise
The claim is supported if both halves are 'yes'; it cannot be said if either half cannot.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mvl_dist.report.layout import Table, Value, words
from mvl_dist.report.results import Results
from mvl_dist.report.stats import TASKS_AS_UNITS, compared, counted
from mvl_dist.report.tables import BASELINE, PROPOSED
from mvl_dist.statistics import LEVEL, MIN_CASES_FOR_INTERVAL, Paired, compare, holm

LINEAR, RANDOM = "MedVisionLlama (Linear)", "random block"

Says = Literal["better", "worse", "no difference shown", "n too small", "not run"]
Answer = Literal["yes", "no, worse", "mixed", "not shown", "cannot be said"]


@dataclass(frozen=True)
class Question:
    """Two models whose difference answers something."""

    key: str
    text: str
    first: str
    second: str = PROPOSED


QUESTIONS = (
    Question("block", "block against none", BASELINE),
    Question("weights", "pre-trained against random weights", RANDOM),
    Question("lora", "LoRA against linear mappers", LINEAR),
)


@dataclass(frozen=True)
class Effect:
    """A question asked on one task (`task` is '' for all tasks together, which has no p)."""

    question: Question
    task: str
    pair: Paired | None
    p: float | None = None

    @property
    def says(self) -> Says:
        """What the task says by the rule."""
        if self.pair is None:
            return "not run"
        if self.pair.n < MIN_CASES_FOR_INTERVAL or self.pair.interval is None or self.p is None:
            return "n too small"
        low, high = self.pair.interval
        if self.p < LEVEL and (low > 0 or high < 0):
            return "better" if low > 0 else "worse"
        return "no difference shown"


@dataclass(frozen=True)
class Verdict:
    """A question's answer, and its sentence."""

    question: Question
    answer: Answer
    sentence: str
    preliminary: bool = False


def effects(results: Results) -> list[Effect]:
    """Every question on every task of the studies; p is Holm-corrected over all of them."""
    pairs = {}
    for question in QUESTIONS:
        for task in results.tasks():
            first, second = (
                results.of(model=model, task=task) for model in (question.first, question.second)
            )
            pairs[question.key, task] = compared(results, first, second, "dice")
    adjusted = holm({key: pair.wilcoxon_p if pair else None for key, pair in pairs.items()})
    found = []
    for question in QUESTIONS:
        of_tasks = [
            Effect(question, task, pairs[question.key, task], adjusted[question.key, task])
            for task in results.tasks()
        ]
        found += of_tasks
        known = [effect for effect in of_tasks if effect.pair]
        if len(known) >= TASKS_AS_UNITS:
            means = {e.task: statistics.fmean(e.pair.differences.values()) for e in known if e.pair}
            found.append(Effect(question, "", compare(dict.fromkeys(means, 0.0), means)))
    return found


def answer(says: Sequence[Says]) -> Answer:
    """A question's answer by what its tasks say."""
    counts = Counter(says)
    better, worse = counts["better"], counts["worse"]
    speaking = better + worse + counts["no difference shown"]
    if not speaking:
        return "cannot be said"
    if better and worse:
        return "mixed"
    if better > speaking / 2:
        return "yes"
    if worse > speaking / 2:
        return "no, worse"
    return "not shown"


def verdicts(results: Results, found: Sequence[Effect]) -> list[Verdict]:
    """The answer to each question."""
    judged = []
    for question in QUESTIONS:
        of_question = [e for e in found if e.question == question and e.task]
        given = answer([effect.says for effect in of_question])
        slots = [slot for slot in results.of() if slot.model in (question.first, question.second)]
        present, expected = counted(slots)
        models = {slot.model for slot in slots if slot.run}
        sentence = _sentence(question, given, of_question, models)
        preliminary = bool(models) and present < expected
        if preliminary:
            sentence += f" Preliminary: {present} of the {expected} runs asked for are finished."
        judged.append(Verdict(question, given, sentence, preliminary))
    return judged


def _sentence(question: Question, given: Answer, found: Sequence[Effect], models: set[str]) -> str:
    start = f"{question.text[0].upper()}{question.text[1:]}: "
    missing = [model for model in (question.first, question.second) if model not in models]
    if missing:
        return f"{start}cannot be said: no finished run of {words(missing)}."
    counts = Counter(effect.says for effect in found)
    if given == "cannot be said":
        most = max((effect.pair.n for effect in found if effect.pair), default=0)
        return (
            f"{start}cannot be said: n too small (at most {most} cases a task; "
            f"{MIN_CASES_FOR_INTERVAL} are needed)."
        )
    speaking = counts["better"] + counts["worse"] + counts["no difference shown"]
    what = {
        "yes": f"{question.second} segments better than {question.first}",
        "no, worse": f"{question.second} segments worse than {question.first}",
        "mixed": "better on some tasks, worse on others",
        "not shown": "no difference is shown",
    }[given]
    detail = (
        f"better on {counts['better']}, worse on {counts['worse']}, no difference shown on "
        f"{counts['no difference shown']} of the {speaking} task(s) with enough cases"
    )
    largest = max(
        (e for e in found if e.pair and e.pair.interval and e.says != "n too small"),
        key=lambda e: abs(e.pair.median_difference) if e.pair else 0.0,
    )
    return f"{start}{what} ({detail}; largest median difference {_in_words(largest)})."


def _in_words(effect: Effect) -> str:
    pair = effect.pair
    if pair is None or pair.interval is None:
        return ""
    low, high = pair.interval
    return (
        f"{pair.median_difference:+.3f} Dice, 95 % interval {low:+.3f} to {high:+.3f}, on "
        f"{effect.task}, n={pair.n}"
    )


def conclusion(judged: Sequence[Verdict]) -> str:
    """The claim's sentence: block and weights together."""
    half = {verdict.question.key: verdict for verdict in judged}
    said = _conclusion(half["block"].answer, half["weights"].answer)
    unfinished = half["block"].preliminary or half["weights"].preliminary
    return f"{said} Preliminary: not all runs asked for are finished." if unfinished else said


def _conclusion(block: Answer, weights: Answer) -> str:
    if block == "yes" and weights == "yes":
        return "Supported: the block helps, and it is the pre-trained weights that help."
    if block == "cannot be said":
        return "Cannot be said: the comparison of block against none is missing or too small."
    if block != "yes":
        reason = {
            "not shown": "no gain from the block is shown",
            "no, worse": "the block makes it worse",
            "mixed": "the block helps on some tasks and harms on others",
        }[block]
        return f"Not supported by these runs: {reason}."
    if weights == "cannot be said":
        return (
            "Cannot be said: the block helps, but whether its pre-trained weights do is open: the "
            "control with random weights is missing or too small."
        )
    return (
        "Not supported by these runs: the block helps, but pre-trained weights do not show to be "
        "better than random ones in the same block."
    )


def effect_table(found: Sequence[Effect]) -> Table:
    """Every effect with its interval and test."""
    rows: list[tuple[Value, ...]] = []
    for effect in found:
        pair = effect.pair
        if pair is None:
            continue
        rows.append(
            (
                effect.question.text,
                effect.task or "all tasks (unit: a task)",
                str(pair.n),
                f"{pair.median_difference:+.4f}",
                f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}" if pair.interval else "–",
                f"{pair.wins}-{pair.losses}-{pair.ties}",
                *(_p(value) for value in (pair.wilcoxon_p, effect.p, pair.t_test_p)),
                effect.says if effect.task else "",
            )
        )
    return Table(
        "effects",
        "Effects on Dice, second model minus first",
        (
            *("Question", "Task", "n", "Median difference", "95 % BCa interval"),
            *("Wins-losses-ties", "Wilcoxon p", "p, Holm", "Paper's t-test p", "Says"),
        ),
        tuple(rows),
        "Per case, native grid, averaged over folds and seeds first. Holm over all questions and "
        f"tasks. No interval for n < {MIN_CASES_FOR_INTERVAL}, no test for n < 5.",
    )


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
