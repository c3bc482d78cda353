"""Answers to questions, for evaluation: greedy, by a vote of samples, or by a choice forced after the reasoning."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Answered:
    """One question answered; with a forced choice also the answer that was `boxed`, and its `text` where the report shows it."""

    answer: Answer
    boxed: Answer | None = None
    text: dict[str, Any] | None = None

    def to_row(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Answered:
        """What `to_row` made."""
        boxed = row["boxed"]
        return cls(_answer(row["answer"]), None if boxed is None else _answer(boxed), row["text"])


def answer_questions(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    *,
    done: int = 0,
    samples: int = 1,
    temperature: float = 0.0,
    progress: bool = True,
    description: str = "evaluation",
) -> Iterator[list[Answered]]:
    """One answer to each question behind the first `done`, part by part, `evaluation.examples` of all with their text.

    Greedy with one sample; else the letter that most of `samples` at `temperature` box, the first letter of those that
    tie. The draws are keyed by (seed, question, sample).
    """
    sampling = Sampling(group_size=samples, temperature=temperature, max_new_tokens=_limit(config))
    every = max(1, len(questions) // max(1, config.evaluation.examples))
    for part, groups in _generated(config, engine, questions, prompts, sampling, done, progress, description):
        found = []
        for index, (question, group) in enumerate(zip(questions[part], groups, strict=True), part.start):
            texts = [decode(tokenizer, completion.tokens) for completion in group]
            answer = _vote(question, group, [answer_letter(text) for text in texts])
            shown = index % every == 0 and index // every < config.evaluation.examples
            found.append(Answered(answer, text=_example(question, texts[0], answer.predicted) if shown else None))
        yield found


def force_answers(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    *,
    stop: Sequence[int],
    done: int = 0,
    progress: bool = True,
    description: str = "evaluation",
) -> Iterator[list[Answered]]:
    """Forced answers (`shared.forced_choice`) with those boxed in the same greedy reasoning, parts as `answer_questions`.

    `stop`: tokens that end a completion.
    """
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=_limit(config))
    for part, groups in _generated(config, engine, questions, prompts, sampling, done, progress, description):
        asked, completions = questions[part], [group[0] for group in groups]
        forced = forced_answers(
            engine, tokenizer, asked, prompts[part], completions, longest=longest_scored(config), stop=stop
        )
        boxed = [
            _vote(question, [completion], [answer_letter(decode(tokenizer, completion.tokens))])
            for question, completion in zip(asked, completions, strict=True)
        ]
        yield [Answered(*pair) for pair in zip(forced, boxed, strict=True)]


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(**{**row, "probabilities": tuple(row["probabilities"])})


def _limit(config: RunConfig) -> int:
    return config.evaluation.max_new_tokens or config.rollout.max_new_tokens


def _generated(
    config: RunConfig,
    engine: RolloutEngine,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    done: int,
    progress: bool,
    description: str,
) -> Iterator[tuple[slice, list[list[Completion]]]]:
    """The questions behind the first `done` in parts, each with its completions."""
    width = 4 * (config.evaluation.slots or config.rollout.slots)
    with tqdm(total=len(questions), initial=done, desc=description, unit="question", disable=not progress) as bar:
        for start in range(done, len(questions), width):
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
