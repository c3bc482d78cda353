"""Answers to questions, for evaluation: greedy, or by a vote of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import Completion, RolloutEngine, Sampling
from shared.config import RunConfig
from shared.evaluation import Answer, answer_to
from shared.prompts import decode, user_message
from shared.questions import LETTERS, Question
from shared.randomness import uniforms
from shared.rewards import answer_letter


def answer_questions(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    progress: bool = True,
    description: str = "evaluation",
) -> tuple[list[Answer], list[dict[str, Any]]]:
    """One answer to each question, and `evaluation.examples` of them as text for the report.

    Greedy with one sample; else the letter that most of `samples` at `temperature` box, the first letter of those that
    tie. The draws are keyed by (seed, question, sample).
    """
    limit = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    sampling = Sampling(group_size=samples, temperature=temperature, max_new_tokens=limit)
    slots = config.evaluation.slots or config.rollout.slots
    answers: list[Answer] = []
    examples: list[dict[str, Any]] = []
    shown = max(1, len(questions) // max(1, config.evaluation.examples))
    with tqdm(total=len(questions), desc=description, unit="question", disable=not progress) as bar:
        for start in range(0, len(questions), 4 * slots):
            part = slice(start, start + 4 * slots)
            draws = None if temperature == 0 else _draws(config.seed, questions[part], samples, limit)
            groups = engine.generate(prompts[part], sampling, draws)
            for index, (question, group) in enumerate(zip(questions[part], groups, strict=True), start):
                texts = [decode(tokenizer, completion.tokens) for completion in group]
                answer = _vote(question, group, [answer_letter(text) for text in texts])
                answers.append(answer)
                if index % shown == 0 and len(examples) < config.evaluation.examples:
                    examples.append(_example(question, texts[0], answer.predicted))
            bar.update(len(groups))
    return answers, examples


def _draws(seed: int, questions: Sequence[Question], samples: int, limit: int) -> np.ndarray:
    return np.stack(
        [
            np.stack([uniforms(limit, seed, "evaluation", question.id, sample) for sample in range(samples)])
            for question in questions
        ]
    )


def _vote(question: Question, group: Sequence[Completion], letters: Sequence[str]) -> Answer:
    """One answer: that of the only completion, or the majority's with the share of each option."""
    tokens = round(sum(len(completion.tokens) for completion in group) / len(group))
    truncated = sum(completion.truncated for completion in group) * 2 > len(group)
    if len(group) == 1:
        return answer_to(question, letters[0], truncated=truncated, tokens=tokens)
    votes = Counter(letter for letter in letters if letter)
    best = max(sorted(votes), key=votes.__getitem__, default="")
    known = LETTERS[: len(question.choices)]
    cast = sum(votes[letter] for letter in known)
    shares = tuple(votes[letter] / cast if cast else 1 / len(known) for letter in known)
    return answer_to(question, best, truncated=truncated, tokens=tokens, probabilities=shares)


def _example(question: Question, text: str, predicted: str) -> dict[str, Any]:
    return {
        "question": user_message(question),
        "completion": text,
        "answer": question.answer,
        "predicted": predicted,
        "id": question.id,
    }
