"""Finds out how a chat template ends the assistant's turn, and whether completions stop there."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from shared.questions.prompts import encode, render

ANSWERED = "Some answer."
DIALOGUES = (
    [
        {"role": "user", "content": "First question."},
        {"role": "assistant", "content": ANSWERED},
        {"role": "user", "content": "Second question."},
    ],
    [{"role": "user", "content": "First question."}, {"role": "assistant", "content": ANSWERED}],
)


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> tuple[str, int | None] | None:
    """What the template writes after the assistant's turn: the text, and the first added token in it (None if there is none).

    The result is None if the template cannot render a dialogue with an answer.
    """
    for turns in DIALOGUES:  # some templates refuse the longer dialogue, with a second question
        try:
            text = render(tokenizer, turns)
        except TemplateError:
            continue
        if ANSWERED in text:
            after_answer = text.rpartition(ANSWERED)[2].partition("Second question.")[0]
            special_tokens = tokenizer.added_tokens_decoder.keys() | {tokenizer.eos_token_id}
            return after_answer, next(
                (int(token) for token in encode(tokenizer, after_answer) if int(token) in special_tokens), None
            )
    return None


def end_of_turn_warning(tokenizer: PreTrainedTokenizerFast, stop: Sequence[int]) -> str:
    """A warning in one line if the template ends a turn with a token that is not in `stop`; "" if not, or if unknown."""
    end = end_of_turn(tokenizer)
    if end is None or end[1] in stop:
        return ""
    after_answer, token = end
    ends = f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token})" if token is not None else repr(after_answer[:40])
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(stop_id)!r} (id {stop_id})" for stop_id in stop)
    return (
        f"warning: the chat template ends a turn with {ends}, and completions stop at {stops} only: they may run on into a turn "
        "of the user; name its token in eos_token_id of the model's generation_config.json"
    )
