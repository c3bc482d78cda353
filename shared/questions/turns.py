"""How a chat template ends a turn, and whether a completion stops there."""

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
    """What the template writes behind the assistant's turn: that text, and the first added token in it, if there is one.

    None where the template renders no such dialogue.
    """
    for turns in DIALOGUES:  # some templates refuse a second question
        try:
            text = render(tokenizer, turns)
        except TemplateError:
            continue
        if ANSWERED in text:
            behind = text.rpartition(ANSWERED)[2].partition("Second question.")[0]
            marks = tokenizer.added_tokens_decoder.keys() | {tokenizer.eos_token_id}
            return behind, next((int(token) for token in encode(tokenizer, behind) if int(token) in marks), None)
    return None


def end_of_turn_warning(tokenizer: PreTrainedTokenizerFast, stop: Sequence[int]) -> str:
    """One line where no token of `stop` ends a turn as the template does; "" where one does, or where nobody can tell."""
    found = end_of_turn(tokenizer)
    if found is None or found[1] in stop:
        return ""
    behind, token = found
    ends = f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token})" if token is not None else repr(behind[:40])
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(other)!r} (id {other})" for other in stop)
    return (
        f"warning: the chat template ends a turn with {ends}, and completions stop at {stops} only: they may run on into a turn "
        "of the user; name its token in eos_token_id of the model's generation_config.json"
    )
