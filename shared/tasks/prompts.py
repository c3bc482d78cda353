"""The prompts of questions, each worded by its task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError
from shared.policy.tokenizer import check_in_embedding
from shared.questions.prompts import PromptStyle, encode
from shared.questions.record import Question
from shared.tasks.catalogue import task_of


def user_message(question: Question) -> str:
    """What a policy is asked: the user's message, as the question's task words it."""
    return task_of(question).message(question)


def prompt_tokens(
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    *,
    style: PromptStyle,
    rows: int | None,
    max_tokens: int,
    overlong: str,
) -> tuple[list[Question], list[np.ndarray], int]:
    """Questions with their prompts as token ids, and how many prompts were longer than `max_tokens`.

    `overlong`: "truncate_left" keeps a long prompt's last tokens (the paper), "drop" leaves its question out. `rows` of the
    model's embedding: see `shared.policy.tokenizer.embedding_rows`. Raises InputError where nothing is left, and for a
    token that the embedding does not have.
    """
    if not questions:
        raise InputError("there are no questions; the question file is empty")
    kept: list[Question] = []
    prompts: list[np.ndarray] = []
    too_long = 0
    for question in questions:
        tokens = encode(tokenizer, style.text(tokenizer, user_message(question)))
        if len(tokens) > max_tokens:
            too_long += 1
            if overlong == "drop":
                continue
        kept.append(question)
        prompts.append(tokens[-max_tokens:])
    if not kept:
        raise InputError(f"all {too_long} prompts are longer than rollout.max_prompt_tokens = {max_tokens}; raise it")
    check_in_embedding(tokenizer, prompts, rows, "prompts")
    return kept, prompts, too_long
