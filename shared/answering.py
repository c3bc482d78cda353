"""Greedy answers to questions, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import RolloutEngine, Sampling
from shared.config import RunConfig
from shared.evaluation import Answer, answer_to
from shared.prompts import decode, user_message
from shared.questions import Question
from shared.rewards import answer_letter


def answer_questions(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    *,
    progress: bool = True,
    description: str = "evaluation",
) -> tuple[list[Answer], list[dict[str, Any]]]:
    """One greedy answer to each question, and `evaluation.examples` of them as text for the report."""
    limit = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=limit)
    slots = config.evaluation.slots or config.rollout.slots
    answers: list[Answer] = []
    examples: list[dict[str, Any]] = []
    shown = max(1, len(questions) // max(1, config.evaluation.examples))
    with tqdm(total=len(questions), desc=description, unit="question", disable=not progress) as bar:
        for start in range(0, len(questions), 4 * slots):
            part = slice(start, start + 4 * slots)
            groups = engine.generate(prompts[part], sampling, None)
            for index, (question, [completion]) in enumerate(zip(questions[part], groups, strict=True), start):
                text = decode(tokenizer, completion.tokens)
                predicted = answer_letter(text)
                answers.append(
                    answer_to(question, predicted, truncated=completion.truncated, tokens=len(completion.tokens))
                )
                if index % shown == 0 and len(examples) < config.evaluation.examples:
                    examples.append(_example(question, text, predicted))
            bar.update(len(groups))
    return answers, examples


def _example(question: Question, text: str, predicted: str) -> dict[str, Any]:
    return {
        "question": user_message(question),
        "completion": text,
        "answer": question.answer,
        "predicted": predicted,
        "id": question.id,
    }
