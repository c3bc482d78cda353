"""Question -> chat messages -> token ids, through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError
from shared.questions import LETTERS, Question

# The original's training prompts (spec: registry, section c).
SYSTEM_PROMPT = (
    "Do not add a disclaimer or any other unnecessary sentences after the prediction.\n"
    "Put your final answer (letter choice only) within \\boxed{}."
)
PREFILL = "Let's think step by step."

# Models that open their own reasoning: families by their name, others by how their generation prompt ends.
REASONING_FAMILIES = ("qwq", "deepseek-r1")
REASONING_BEGINS = "<think>"


def user_message(question: Question) -> str:
    """The record, the question line, and one line for each option; the original's AKI options have no blank."""
    mark = "." if question.task == "aki" else ". "
    options = "".join(f"\n{letter}{mark}{choice}" for letter, choice in zip(LETTERS, question.choices))
    return f"{question.context}\n{question.question}{options}"


def prefill_for(model: str) -> str:
    """What the assistant's turn begins with, by the last part of a model's path: "" for a reasoning family."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return "" if any(family in name for family in REASONING_FAMILIES) else PREFILL


def opens_reasoning(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template's own generation prompt begins a reasoning, whatever the model's directory is called."""
    return chat_text(tokenizer, "?", system="", prefill="").rstrip().endswith(REASONING_BEGINS)


def chat_text(
    tokenizer: PreTrainedTokenizerFast, message: str, *, system: str = SYSTEM_PROMPT, prefill: str = PREFILL
) -> str:
    """The prompt as text, ending inside the assistant's turn, right after `prefill`.

    With an empty `prefill` (models that open their own reasoning) the template's generation prompt ends it. A template
    that drops, alters or refuses a system role gets the system prompt in front of the user's message instead. Raises
    InputError where the template refuses a user's message, or drops the beginning of the assistant's turn.
    """
    if system:
        try:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": message}]
            text = _rendered(tokenizer, turns, prefill)
        except TemplateError:
            text = ""
        if system in text:
            return text
        message = f"{system}\n{message}"
    try:
        return _rendered(tokenizer, [{"role": "user", "content": message}], prefill)
    except TemplateError as error:
        raise InputError(f"the tokenizer's chat template refuses a user's message: {error}") from error


def _rendered(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], prefill: str) -> str:
    if not prefill:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    turns = [*turns, {"role": "assistant", "content": prefill}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    if prefill not in text:
        raise InputError("the tokenizer's chat template drops what the assistant's turn begins with")
    return text[: text.rindex(prefill) + len(prefill)]


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Token ids of text that already holds every special token its template wants."""
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def decode(tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray) -> str:
    """A completion as text without special tokens, for the reward and the report; it is never encoded again."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def prompt_tokens(
    tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], *, max_tokens: int, overlong: str
) -> tuple[list[Question], list[np.ndarray], int]:
    """Questions with their prompts as token ids, and how many prompts were longer than `max_tokens`.

    `overlong`: "truncate_left" keeps a long prompt's last tokens (the paper), "drop" leaves its question out. Raises
    InputError where nothing is left.
    """
    if not questions:
        raise InputError("there are no questions; the question file is empty")
    prefill = "" if opens_reasoning(tokenizer) else prefill_for(str(tokenizer.name_or_path))
    kept: list[Question] = []
    prompts: list[np.ndarray] = []
    too_long = 0
    for question in questions:
        tokens = encode(tokenizer, chat_text(tokenizer, user_message(question), prefill=prefill))
        if len(tokens) > max_tokens:
            too_long += 1
            if overlong == "drop":
                continue
        kept.append(question)
        prompts.append(tokens[-max_tokens:])
    if not kept:
        raise InputError(f"all {too_long} prompts are longer than rollout.max_prompt_tokens = {max_tokens}; raise it")
    return kept, prompts, too_long
