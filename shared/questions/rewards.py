"""The reward of a completion: the letter of its answer, and the weighted terms of the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shared.questions.boxes import answer_letter
from shared.questions.record import Question

if TYPE_CHECKING:
    from shared.grpo.section import GrpoConfig


def letter_of(question: Question, text: str, config: GrpoConfig, *, thinking: bool = False) -> str:
    """The letter of the answer in a completion, by `config.answer_rule`; "" if there is none. For `thinking` see `score`."""
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
    """The weighted terms of the reward of a completion `text`. `total` adds them; each is also logged separately.

        answer    reward_answer if the letter of the answer is right
        format    reward_format if there is an answer: any letter A-E; with lenient_last, the letter of an option
        length    reward_length if the completion ended by itself, so that it is not `truncated`
        overlong  0 up to `overlong_soft` tokens, then linear down to -1 at `max_new_tokens`; 0 if it is off

    `config.answer_rule` says how the answer is read (`shared.questions.boxes`). `tokens` is the number of tokens of the
    completion, with its end-of-sequence token. `thinking` says that the prompt ends inside the model's reasoning.
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
    """The penalty of a long completion: 0 up to `soft` tokens, then linear down to -1 at `limit` tokens.

    It is always 0 if `soft` is 0 (off). Source: DAPO (arXiv 2503.14476), soft overlong punishment.
    """
    if soft == 0 or tokens <= soft:
        return 0.0
    return -min(1.0, (tokens - soft) / (limit - soft))
