"""From a completion's text to its reward: the terms of the question's task, weighed by the config, and those of its length.

A reward is a function `score(question, completion, **info)` that returns a number or terms by name (docs/extending.md). `info`:

    rule       which box is the answer, and how it is read: `grpo.answer_rule`
    thinking   the prompt ends inside the model's reasoning
    tokens     the completion's tokens, its end-of-sequence token included
    truncated  the length limit ended the completion
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shared.errors import InputError
from shared.questions.boxes import answer_letter
from shared.questions.record import Question
from shared.tasks.catalogue import reward_of

if TYPE_CHECKING:
    from shared.config import GrpoConfig

OF_LENGTH = ("length", "overlong")  # terms that every completion has, whatever its task


def letter_of(question: Question, text: str, config: GrpoConfig, *, thinking: bool = False) -> str:
    """The letter that a completion answers by `config.answer_rule`, "" where there is none; see `score`."""
    return answer_letter(text, config.answer_rule, options=len(question.choices), thinking=thinking)


def score(
    question: Question,
    text: str,
    *,
    tokens: int,
    truncated: bool,
    config: GrpoConfig,
    max_new_tokens: int,
    thinking: bool = False,
) -> dict[str, float]:
    """The reward terms of a completion, weighted; `total` adds them up and each is logged apart.

        answer    reward_answer times the task's term `answer`, or times its one number: for a letter 1 where it is right
        format    reward_format times the task's term `format`: for a letter 1 where there is an answer, any letter A-E, or
                  with lenient_last any of the options shown
        length    reward_length where the completion ended by itself (not `truncated`)
        overlong  0 up to `overlong_soft` tokens, from there linearly to -1 at `max_new_tokens`; 0 where it is off

    Any other term of the task counts as it is. `tokens` and `thinking`: see the top of this file. Raises InputError if the task's
    reward gives no finite number, or a term with the name of one of the last two.
    """
    given = reward_of(question)(
        question, text, rule=config.answer_rule, thinking=thinking, tokens=tokens, truncated=truncated
    )
    terms = given if isinstance(given, Mapping) else {"answer": given}
    weights = {"answer": config.reward_answer, "format": config.reward_format}
    weighted = {name: weights.get(name, 1.0) * float(value) for name, value in terms.items()}
    taken = [name for name in OF_LENGTH if name in terms]
    if taken:
        raise InputError(f"task {question.task!r}: its reward has a term {taken[0]!r}, which is made here; rename it")
    broken = next((name for name, value in weighted.items() if not math.isfinite(value)), None)
    if broken is not None:
        raise InputError(
            f"task {question.task!r}: its reward gives {weighted[broken]} for {broken}; it must be a finite number"
        )
    return weighted | {
        "length": config.reward_length * (not truncated),
        "overlong": overlong_penalty(tokens, config.overlong_soft, max_new_tokens),
    }


def total(terms: Mapping[str, float]) -> float:
    """The reward: the sum of its terms."""
    return sum(terms.values())


def overlong_penalty(tokens: int, soft: int, limit: int) -> float:
    """0 up to `soft` tokens, then linearly down to -1 at `limit` tokens; 0 everywhere where `soft` is 0 (off)."""
    if soft == 0 or tokens <= soft:
        return 0.0
    return -min(1.0, (tokens - soft) / (limit - soft))
