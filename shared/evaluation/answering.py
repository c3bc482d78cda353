"""Answers to questions, for evaluation: greedy, by a vote of samples, or by a choice forced after the reasoning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import Completion, RolloutEngine, Sampling, longest_scored
from shared.evaluation.answers import Answer
from shared.evaluation.forced_choice import forced_answers
from shared.evaluation.votes import Sample, answer_of
from shared.questions.prompts import decode, opens_reasoning
from shared.questions.record import Question
from shared.randomness import uniforms
from shared.tasks.prompts import user_message

if TYPE_CHECKING:
    from shared.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answer to one question, and what stands beside it.

    `boxed`: with a forced choice, the letter that the model boxed itself. `text`: question and completion as text, where they
    are kept. `samples`: with the text, all completions of a vote, as `Sample.to_row` gives them.
    """

    answer: Answer
    boxed: Answer | None = None
    text: dict[str, Any] | None = None
    samples: list[dict[str, Any]] | None = None

    def to_row(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Answered:
        """What `to_row` made."""
        boxed = row["boxed"]
        return cls(_answer(row["answer"]), None if boxed is None else _answer(boxed), row["text"], row.get("samples"))


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
    """Answers to the questions after the first `done`, part by part; `evaluation.examples` of all questions have their text.

    `prompts`: token ids of each question, `[time]`. With `temperature` 0 the answer is greedy. Of several `samples` the most
    frequent letter is the answer, and the first in the alphabet where some are equally frequent. `grpo.answer_rule` says which
    box counts. The random numbers depend on seed, question and sample alone.
    """
    sampling = Sampling(group_size=samples, temperature=temperature, max_new_tokens=_limit(config))
    every = max(1, len(questions) // max(1, config.evaluation.examples))
    for part, groups in _generated(config, engine, questions, prompts, sampling, done, progress, description):
        answered = []
        completed = zip(questions[part], prompts[part], groups, strict=True)
        for index, (question, prompt, group) in enumerate(completed, part.start):
            texts = _samples(tokenizer, prompt, group)
            answer = answer_of(question, texts, config.grpo.answer_rule)
            if index % every == 0 and index // every < config.evaluation.examples:
                voters = [sample.to_row() for sample in texts] if samples > 1 else None
                answered.append(Answered(answer, text=_example(question, texts[0], answer.predicted), samples=voters))
            else:
                answered.append(Answered(answer))
        yield answered


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
    """Forced answers (`shared.evaluation.forced_choice`), each with the answer boxed in the same greedy reasoning.

    Part by part, as in `answer_questions`. `stop`: tokens that end a completion.
    """
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=_limit(config))
    for part, groups in _generated(config, engine, questions, prompts, sampling, done, progress, description):
        asked, completions = questions[part], [group[0] for group in groups]
        forced = forced_answers(
            engine, tokenizer, asked, prompts[part], completions, longest=longest_scored(config), stop=stop
        )
        boxed = [
            answer_of(question, _samples(tokenizer, prompt, group), config.grpo.answer_rule)
            for question, prompt, group in zip(asked, prompts[part], groups, strict=True)
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
    """The questions after the first `done` in parts: which questions, and the completions of each."""
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
    """Uniform random numbers `[questions, samples, time]`, one for each token that may be drawn."""

    def numbers(question: Question) -> np.ndarray:
        samples = range(sampling.group_size)
        return np.stack([uniforms(sampling.max_new_tokens, seed, "evaluation", question.id, n) for n in samples])

    return np.stack([numbers(question) for question in questions])


def _samples(tokenizer: PreTrainedTokenizerFast, prompt: np.ndarray, group: Sequence[Completion]) -> list[Sample]:
    """The completions of one prompt as text."""
    thinking = opens_reasoning(tokenizer, prompt)
    return [
        Sample(
            completion=decode(tokenizer, completion.tokens),
            truncated=bool(completion.truncated),
            tokens=len(completion.tokens),
            thinking=thinking,
        )
        for completion in group
    ]


def _example(question: Question, sample: Sample, predicted: str) -> dict[str, Any]:
    return {
        "question": user_message(question),
        **sample.to_row(),
        "answer": question.answer,
        "predicted": predicted,
        "id": question.id,
    }
