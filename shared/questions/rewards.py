"""From a completion's text to its reward: the answer it boxed, and the terms that a config weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shared.questions.boxes import answer_letter
from shared.questions.record import Question

if TYPE_CHECKING:
    from shared.grpo.section import GrpoConfig


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

        answer    reward_answer where the boxed letter is the right one
        format    reward_format where there is an answer: any letter A-E, or with lenient_last any of the options shown
        length    reward_length where the completion ended by itself (not `truncated`)
        overlong  0 up to `overlong_soft` tokens, from there linearly to -1 at `max_new_tokens`; 0 where it is off

    Which box is read, and how, says `config.answer_rule` (`shared.questions.boxes`); `thinking`: the prompt ends inside the
    model's reasoning. `tokens` counts the completion's tokens, its end-of-sequence token included.
    """
    letter = letter_of(question, text, config, thinking=thinking)
    return {
        "answer": config.reward_answer * (letter == question.answer),
        "format": config.reward_format * (letter != ""),
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
