"""Two models on the same questions: McNemar's test, and the difference with a bootstrap of patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy.stats import binomtest

from shared.errors import InputError
from shared.evaluation.answers import Answer
from shared.evaluation.figures import gain
from shared.questions.record import Question


def check_same(other: Sequence[Answer], questions: Sequence[Question]) -> None:
    """Raise InputError unless another model's answers are to exactly these questions, one answer for each."""
    asked = {question.id: (question.patient, question.feature) for question in questions}
    answered = {answer.question_id: (answer.patient, answer.feature) for answer in other}
    missing, unasked = asked.keys() - answered.keys(), answered.keys() - asked.keys()
    if missing or unasked:
        raise InputError(
            f"--compare: answers {len(unasked)} other questions and lacks {len(missing)} of these {len(asked)}; evaluate both "
            "models on the same files, with the same --limit and --cyclic"
        )
    if len(answered) != len(other):
        raise InputError("--compare: answers some questions more than once; give the answers.parquet of one evaluation")
    if answered != asked:
        raise InputError("--compare: its questions have the same names but are about other patients or features")


def compare(first: Sequence[Answer], second: Sequence[Answer], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """`difference` of accuracy (second less first), its 95% interval `ci`, and McNemar's exact test.

    `only_first` and `only_second` count the questions that only one of the two answered rightly. `p` is the two-sided exact
    binomial probability of a split at least as uneven. The test takes questions as independent: where patients have several
    questions, judge by the interval. Raises InputError where the two answered different questions. Source: McNemar,
    Psychometrika 1947.
    """
    right = {answer.question_id: answer.correct for answer in first}
    if len(right) != len(first) or {answer.question_id for answer in second} != set(right):
        raise InputError("the two models answered different questions; evaluate both on the same file")
    change = gain(first, second, bootstrap=bootstrap, seed=seed)
    only_first = sum(right[answer.question_id] and not answer.correct for answer in second)
    only_second = sum(answer.correct and not right[answer.question_id] for answer in second)
    uneven = only_first + only_second
    return {
        "n": len(first),
        "difference": change["value"],
        "ci": change["ci"],
        "only_first": only_first,
        "only_second": only_second,
        "p": float(binomtest(only_second, uneven).pvalue) if uneven else 1.0,
    }
