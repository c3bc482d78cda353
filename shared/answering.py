"""Answers to questions, for evaluation: greedy, by a vote of samples, or by a choice forced after the reasoning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import Completion, RolloutEngine, Sampling, longest_scored
from shared.config import RunConfig
from shared.evaluation import Answer, answer_to
from shared.forced_choice import forced_answers
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
    sampling = Sampling(group_size=samples, temperature=temperature, max_new_tokens=_limit(config))
    answers: list[Answer] = []
    examples: list[dict[str, Any]] = []
    shown = max(1, len(questions) // max(1, config.evaluation.examples))
    for part, groups in _generated(config, engine, questions, prompts, sampling, progress, description):
        for index, (question, group) in enumerate(zip(questions[part], groups, strict=True), part.start):
            texts = [decode(tokenizer, completion.tokens) for completion in group]
            answer = _vote(question, group, [answer_letter(text) for text in texts])
            answers.append(answer)
            if index % shown == 0 and len(examples) < config.evaluation.examples:
                examples.append(_example(question, texts[0], answer.predicted))
    return answers, examples


def force_answers(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    *,
    stop: Sequence[int],
    progress: bool = True,
    description: str = "evaluation",
) -> tuple[list[Answer], list[Answer]]:
    """One forced answer to each question (`shared.forced_choice`), and the one boxed in the same greedy reasoning.

    `stop`: tokens that end a completion.
    """
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=_limit(config))
    forced: list[Answer] = []
    boxed: list[Answer] = []
    for part, groups in _generated(config, engine, questions, prompts, sampling, progress, description):
        asked, completions = questions[part], [group[0] for group in groups]
        forced += forced_answers(
            engine, tokenizer, asked, prompts[part], completions, longest=longest_scored(config), stop=stop
        )
        boxed += [
            _vote(question, [completion], [answer_letter(decode(tokenizer, completion.tokens))])
            for question, completion in zip(asked, completions, strict=True)
        ]
    return forced, boxed


def _limit(config: RunConfig) -> int:
    return config.evaluation.max_new_tokens or config.rollout.max_new_tokens


def _generated(
    config: RunConfig,
    engine: RolloutEngine,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    progress: bool,
    description: str,
) -> Iterator[tuple[slice, list[list[Completion]]]]:
    """The questions in parts, each with its completions."""
    width = 4 * (config.evaluation.slots or config.rollout.slots)
    with tqdm(total=len(questions), desc=description, unit="question", disable=not progress) as bar:
        for start in range(0, len(questions), width):
            part = slice(start, start + width)
            greedy = sampling.temperature == 0
            draws = None if greedy else _draws(config.seed, questions[part], sampling)
            groups = engine.generate(prompts[part], sampling, draws)
            yield part, groups
            bar.update(len(groups))


def _draws(seed: int, questions: Sequence[Question], sampling: Sampling) -> np.ndarray:
    def numbers(question: Question) -> np.ndarray:
        samples = range(sampling.group_size)
        return np.stack([uniforms(sampling.max_new_tokens, seed, "evaluation", question.id, n) for n in samples])

    return np.stack([numbers(question) for question in questions])


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
