"""Message -> chat -> token ids, through the tokenizer's own chat template; `shared.tasks.prompts` makes messages of questions."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError
from shared.questions.boxes import THINK, THOUGHT

# The original's training prompts (spec: registry, section c).
SYSTEM_PROMPT = (
    "Do not add a disclaimer or any other unnecessary sentences after the prediction.\n"
    "Put your final answer (letter choice only) within \\boxed{}."
)
PREFILL = "Let's think step by step."

# What templates call the switch of a model that may think or not (Qwen3; DeepSeek-V3.1).
SWITCHES = ("enable_thinking", "thinking")
OPENING = 64  # tokens at the end of a prompt among which a template opens or closes a model's reasoning
HERE = "\ue000\ue001"  # stands for the beginning of the assistant's turn while a template is rendered


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """What a prompt depends on beside its question and the template; chosen once for a run (`shared.questions.prompt_style`).

    `prefill` begins the assistant's turn; "" leaves it to the template's generation prompt. `thinking` is what a template's
    switch is set to; "auto" leaves it alone. `date` (YYYY-MM-DD) is what a template takes for today; "" for one that shows none.
    """

    prefill: str = PREFILL
    thinking: Literal["auto", "on", "off"] = "auto"
    date: str = ""

    def text(self, tokenizer: PreTrainedTokenizerFast, message: str, *, system: str = SYSTEM_PROMPT) -> str:
        """`chat_text` in this style."""
        return chat_text(
            tokenizer, message, system=system, prefill=self.prefill, thinking=self.thinking, date=self.date
        )


def chat_text(
    tokenizer: PreTrainedTokenizerFast,
    message: str,
    *,
    system: str = SYSTEM_PROMPT,
    prefill: str = PREFILL,
    thinking: Literal["auto", "on", "off"] = "auto",
    date: str = "",
) -> str:
    """The prompt as text, ending inside the assistant's turn, right after `prefill`.

    With an empty `prefill` (models that open their own reasoning) the template's generation prompt ends it. A template
    that drops, alters or refuses a system role gets the system prompt in front of the user's message instead. `thinking`
    and `date`: see `PromptStyle`; without a date a template that shows one sees the clock. Raises InputError where the
    template refuses a user's message, or drops the beginning of the assistant's turn.
    """
    variables: dict[str, Any] = {} if thinking == "auto" else dict.fromkeys(SWITCHES, thinking == "on")
    if date:
        variables["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    if system:
        try:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": message}]
            text = _opened(tokenizer, turns, prefill, variables)
        except TemplateError:
            text = ""
        if system in text:
            return text
        message = f"{system}\n{message}"
    try:
        return _opened(tokenizer, [{"role": "user", "content": message}], prefill, variables)
    except TemplateError as error:
        raise InputError(f"the tokenizer's chat template refuses a user's message: {error}") from error


def render(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[dict[str, str]], *, answer: bool = False, **variables: Any
) -> str:
    """Turns of a dialogue through the template, with its generation prompt where an `answer` is to follow.

    `variables` are the template's own, and hide what Transformers gives it. Raises jinja2.TemplateError.
    """
    return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=answer, **variables))


def _opened(
    tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], prefill: str, variables: dict[str, Any]
) -> str:
    """Turns and the beginning of the assistant's."""
    if not prefill:
        return render(tokenizer, turns, answer=True, **variables)
    if SWITCHES[0] in variables:
        text = render(tokenizer, turns, answer=True, **variables)
        other = dict.fromkeys(SWITCHES, not variables[SWITCHES[0]])
        if text != render(tokenizer, turns, answer=True, **variables | other):
            return text + prefill  # what a switch writes may stand in the generation prompt alone
    # Not the words themselves: a template may end its turns with some of them.
    text = render(tokenizer, [*turns, {"role": "assistant", "content": HERE}], **variables)
    if HERE not in text:
        raise InputError("the tokenizer's chat template drops what the assistant's turn begins with")
    return text[: text.rindex(HERE)] + prefill


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Token ids of text that already holds every special token its template wants."""
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def decode(tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray) -> str:
    """A completion as text without special tokens, for the reward and the report; it is never encoded again."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def opens_reasoning(tokenizer: PreTrainedTokenizerFast, prompt: np.ndarray) -> bool:
    """Whether a prompt `[time]` ends inside the model's reasoning: its last tokens open it and do not close it."""
    end = decode(tokenizer, prompt[-OPENING:])
    return end.rfind(THINK) > end.rfind(THOUGHT)
