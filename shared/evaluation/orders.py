"""The same question with its options in every cyclic order: does an answer follow the option, or the letter?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shared.errors import InputError
from shared.evaluation.answers import Answer
from shared.questions.record import LETTERS, Question

MARK = "~"  # between a question's id and the number of places that its options are moved by


def cyclic(questions: Sequence[Question]) -> list[Question]:
    """Each question once for every rotation of its options. The first keeps the order; ids end in `~0`, `~1`, and so on."""
    return [rotated(question, places) for question in questions for places in range(len(question.choices))]


def rotated(question: Question, places: int) -> Question:
    """The question with its options moved by `places` towards A."""
    count = len(question.choices)

    def moved(letter: str) -> str:
        return LETTERS[(LETTERS.index(letter) - places) % count]

    return dataclasses.replace(
        question,
        id=f"{question.id}{MARK}{places}",
        choices=question.choices[places:] + question.choices[:places],
        answer=moved(question.answer),
        majority=moved(question.majority),
        bayes_answer=None if question.bayes_answer is None else moved(question.bayes_answer),
    )


def consistency(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Any]:
    """What the order of options changes, for questions from `cyclic` and their answers.

    `questions`: how many original questions there are. `accuracy`: over all orders. `always_right` and `same_option`: the shares
    of original questions that are answered rightly in every order, and with the same option in every order. `letters` and
    `right_letters`: the share of each letter among the answers, and among the right answers. Raises InputError where an
    answer is missing.
    """
    by_question = {answer.question_id: answer for answer in answers}
    groups: dict[str, list[tuple[Question, Answer]]] = {}
    for question in questions:
        if question.id not in by_question:
            raise InputError(f"{len(answers)} answers to {len(questions)} questions: there must be one for each")
        groups.setdefault(question.id.rpartition(MARK)[0], []).append((question, by_question[question.id]))
    texts = [{_option(question, answer) for question, answer in pairs} for pairs in groups.values()]
    right = [all(answer.correct for _, answer in pairs) for pairs in groups.values()]
    return {
        "questions": len(groups),
        "accuracy": sum(answer.correct for answer in answers) / len(answers),
        "always_right": sum(right) / len(groups),
        "same_option": sum(len(options) == 1 and options != {""} for options in texts) / len(groups),
        "letters": shares(answer.predicted for answer in answers),
        "right_letters": shares(question.answer for question in questions),
    }


def shares(letters: Any) -> dict[str, float]:
    """The share of each letter, and of no answer as ""."""
    counts = Counter(letters)
    total = sum(counts.values())
    return {letter: counts[letter] / total for letter in ("", *LETTERS) if counts[letter]}


def _option(question: Question, answer: Answer) -> str:
    place = LETTERS.find(answer.predicted) if answer.predicted else -1
    return question.choices[place] if 0 <= place < len(question.choices) else ""
