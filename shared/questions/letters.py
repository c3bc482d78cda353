"""Questions of kind "choice": how their message lists the options, and what the letter of a completion is worth."""

from __future__ import annotations

from typing import Any

from shared.questions.boxes import answer_letter
from shared.questions.record import LETTERS, Question


def message(question: Question, *, mark: str = ". ") -> str:
    """The record, the line that asks, and one line for each option: its letter, `mark`, its text."""
    options = "".join(f"\n{letter}{mark}{choice}" for letter, choice in zip(LETTERS, question.choices))
    return f"{question.context}\n{question.question}{options}"


def reward(question: Question, completion: str, *, rule: str, thinking: bool, **info: Any) -> dict[str, float]:
    """Two terms, 1 or 0 each: `answer`, the letter in the box is the right one; `format`, there is a letter in a box.

    `rule` says which box is read, and how (`shared.questions.boxes`). `thinking`: the prompt ends inside the model's reasoning.
    """
    letter = answer_letter(completion, rule, options=len(question.choices), thinking=thinking)
    return {"answer": float(letter == question.answer), "format": float(letter != "")}
