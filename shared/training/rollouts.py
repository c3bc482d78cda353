"""Rounds of rollouts sampled from the engine: completions, their rewards, and the batch that is learned from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared import grpo
from shared.backend import Completion, Learner, RolloutEngine, Sampling
from shared.grpo import GroupBatch, GroupLayout
from shared.questions import rewards
from shared.questions.prompts import decode, opens_reasoning
from shared.questions.record import Question, question_at
from shared.randomness import uniforms
from shared.training import published
from shared.training.loop import Round

if TYPE_CHECKING:
    from shared.config import RunConfig

REFILL_ROUNDS = 3  # further batches of questions asked for when groups have equal rewards


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Groups of G completions, one group for each question.

    `prompts` are token ids `[time]`. `rewards` `[groups, G]` are totals, `terms` `[groups, G]` their parts by name. `answered`
    `[groups, G]` is whether a completion has a readable answer.
    """

    questions: list[Question]
    prompts: list[np.ndarray]
    completions: list[list[Completion]]
    rewards: np.ndarray
    terms: dict[str, np.ndarray]
    answered: np.ndarray

    def chosen(self, index: np.ndarray) -> Rollouts:
        """The rollouts of the groups in `index`."""
        return Rollouts(
            [self.questions[i] for i in index],
            [self.prompts[i] for i in index],
            [self.completions[i] for i in index],
            self.rewards[index],
            {name: values[index] for name, values in self.terms.items()},
            self.answered[index],
        )

    def joined(self, other: Rollouts) -> Rollouts:
        """These and `other`'s."""
        return Rollouts(
            self.questions + other.questions,
            self.prompts + other.prompts,
            self.completions + other.completions,
            np.concatenate([self.rewards, other.rewards]),
            {name: np.concatenate([values, other.terms[name]]) for name, values in self.terms.items()},
            np.concatenate([self.answered, other.answered]),
        )


class Sampled:
    """Rounds sampled from the engine, each with the newest weights (`shared.training.loop.Source`)."""

    gap_explanation = "the engine's weights or caches are stale"

    def __init__(
        self,
        config: RunConfig,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerFast,
        questions: Sequence[Question],
        prompts: Sequence[np.ndarray],
        *,
        any_process: Callable[[bool], bool] = bool,
    ) -> None:
        """`prompts` are the token ids `[time]` of `questions`; `any_process`: `Backend.any_process`, where there are several."""
        self._config, self._engine, self._tokenizer, self._questions = config, engine, tokenizer, questions
        self._any_process = any_process
        self._prompts = {question.id: prompt for question, prompt in zip(questions, prompts, strict=True)}

    def publish(self, learner: Learner) -> None:
        """See `Source`."""
        published.publish(learner, self._engine, any_process=self._any_process)

    def next(self, step: int, position: int) -> Round:
        """See `Source`."""
        rollouts, sampled, position = self._collect(step, position)
        self._engine.sleep()
        batch = make_batch(self._config, rollouts)
        question_ids, row_rewards = _of_rows(self._config, rollouts, batch.layout.group)
        return Round(batch, row_rewards, question_ids, rollout_metrics(sampled), _token_count(sampled), position)

    def seconds(self) -> Mapping[str, float]:
        """See `Source`."""
        return self._engine.seconds()

    def sample(self, questions: Sequence[Question], step: int, position: int) -> Rollouts:
        """One group of completions for each question, scored. The first question is at `position` in the order of questions."""
        prompts = [self._prompts[question.id] for question in questions]
        draws = draws_of(self._config, questions, step, position)
        completions = self._engine.generate(prompts, sampling_of(self._config), draws)
        scored = [self._scored(*group) for group in zip(questions, prompts, completions, strict=True)]
        terms = [group_terms for group_terms, _ in scored]
        by_name = {
            name: np.array([[of_one[name] for of_one in group_terms] for group_terms in terms]) for name in terms[0][0]
        }
        totals = np.array([[rewards.total(of_one) for of_one in group_terms] for group_terms in terms])
        answered = np.array([group_answered for _, group_answered in scored])
        return Rollouts(list(questions), prompts, completions, totals, by_name, answered)

    def _collect(self, step: int, position: int) -> tuple[Rollouts, Rollouts, int]:
        """Rollouts to learn from, all that were sampled, and the next position in the order of questions.

        Groups with equal rewards stay, are left out, or are replaced by further questions, as `grpo.uniform_groups` says.
        """
        per_step, uniform_groups = self._config.grpo.questions_per_step, self._config.grpo.uniform_groups
        sampled = self.sample(self._questions_at(position), step, position)
        position += per_step
        if uniform_groups == "keep":
            return sampled, sampled, position
        used = _with_differences(sampled)
        refills = REFILL_ROUNDS if uniform_groups == "refill" else 0
        while refills and len(used.questions) < per_step:
            more = self.sample(self._questions_at(position), step, position)
            position += per_step
            refills -= 1
            sampled = sampled.joined(more)
            used = used.joined(_with_differences(more))
        return used.chosen(np.arange(min(per_step, len(used.questions)))), sampled, position

    def _questions_at(self, position: int) -> list[Question]:
        """A step's questions, the first of them at `position` in the order of questions."""
        config = self._config
        places = range(position, position + config.grpo.questions_per_step)
        return [question_at(self._questions, config.seed, place) for place in places]

    def _scored(
        self, question: Question, prompt: np.ndarray, completions: Sequence[Completion]
    ) -> tuple[list[dict[str, float]], list[bool]]:
        """Of each completion of a group its reward terms, and whether it has a readable answer."""
        thinking = opens_reasoning(self._tokenizer, prompt)
        # The tokens are decoded for the reward only. The text is never encoded again.
        texts = [decode(self._tokenizer, completion.tokens) for completion in completions]
        terms = [
            score_completion(self._config, question, text, completion, thinking=thinking)
            for text, completion in zip(texts, completions, strict=True)
        ]
        answered = [rewards.letter_of(question, text, self._config.grpo, thinking=thinking) != "" for text in texts]
        return terms, answered


def sampling_of(config: RunConfig) -> Sampling:
    """How a training step draws its completions."""
    rollout = config.rollout
    return Sampling(
        group_size=config.grpo.group_size,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
    )


def draws_of(config: RunConfig, questions: Sequence[Question], step: int, position: int) -> np.ndarray:
    """The random numbers of a step's completions, `[questions, G, max_new_tokens]`.

    They are keyed by the position in the order of questions too: a refill may meet a question again within a step.
    """
    length, samples = config.rollout.max_new_tokens, range(config.grpo.group_size)
    keys = [(config.seed, "sample", step, position + index, question.id) for index, question in enumerate(questions)]
    return np.stack([[uniforms(length, *key, sample) for sample in samples] for key in keys])


def score_completion(
    config: RunConfig, question: Question, text: str, completion: Completion, *, thinking: bool = False
) -> dict[str, float]:
    """Reward terms of one completion, which reads `text`. `thinking`: its prompt ends inside the model's reasoning."""
    return rewards.score(
        question,
        text,
        tokens=len(completion.tokens),
        truncated=completion.truncated,
        config=config.grpo,
        max_new_tokens=config.rollout.max_new_tokens,
        thinking=thinking,
    )


def make_batch(config: RunConfig, rollouts: Rollouts) -> GroupBatch:
    """The rollouts as arrays, with as many rows as a full step has, so that every step has one shape."""
    tokens = [[completion.tokens for completion in samples] for samples in rollouts.completions]
    group = config.grpo.group_size
    truncated = np.array([[c.truncated for c in samples] for samples in rollouts.completions], bool).reshape(-1, group)
    empty = np.zeros((0, group))
    batch = grpo.pack(
        rollouts.prompts,
        tokens,
        layout_of(config, rollouts),
        advantages=grpo.advantages(rollouts.rewards, config.grpo.advantage_scale) if tokens else empty,
        completion_masks=grpo.completion_masks(tokens, truncated, mask_truncated=config.grpo.mask_truncated),
        rollout_logprobs=[[completion.logprobs for completion in samples] for samples in rollouts.completions],
    )
    batch = grpo.pad_rows(batch, config.grpo.questions_per_step)
    return batch if config.learner.group_layout else grpo.separate_rows(batch)


def layout_of(config: RunConfig, rollouts: Rollouts) -> GroupLayout:
    """The row's layout: the configured limits, or the batch's own lengths rounded up to `learner.length_bucket`."""
    prompt, completion = config.rollout.max_prompt_tokens, config.rollout.max_new_tokens
    bucket = config.learner.length_bucket
    if bucket and rollouts.prompts:
        longest = max(map(len, rollouts.prompts))
        written = max(len(c.tokens) for samples in rollouts.completions for c in samples)
        prompt = min(prompt, math.ceil(longest / bucket) * bucket)
        completion = min(completion, math.ceil(written / bucket) * bucket)
    return GroupLayout(prompt=prompt, group=config.grpo.group_size, completion=completion)


def rollout_metrics(sampled: Rollouts) -> dict[str, float]:
    """What a metrics line says of the completions: means over all that were sampled in a step."""
    completions = [completion for samples in sampled.completions for completion in samples]
    return {
        "reward": float(sampled.rewards.mean()),
        "reward_std": float(sampled.rewards.std()),
        **{f"reward_{name}": float(values.mean()) for name, values in sampled.terms.items()},
        "answered": float(sampled.answered.mean()),
        "uniform_groups": float(grpo.uniform_groups(sampled.rewards).mean()),
        "completion_length": float(np.mean([len(completion.tokens) for completion in completions])),
        "truncated": float(np.mean([completion.truncated for completion in completions])),
        "questions": len(sampled.questions),
    }


def _with_differences(rollouts: Rollouts) -> Rollouts:
    """Without the groups whose rewards are all equal."""
    return rollouts.chosen(np.flatnonzero(~grpo.uniform_groups(rollouts.rewards)))


def _of_rows(config: RunConfig, rollouts: Rollouts, group: int) -> tuple[list[str], np.ndarray]:
    """Question ids, and rewards `[rows, group]`, of a full batch's rows of `group` completions; "" and 0 in empty rows."""
    missing = config.grpo.questions_per_step - len(rollouts.questions)
    question_ids = [question.id for question in rollouts.questions] + [""] * missing
    row_rewards = np.pad(rollouts.rewards, ((0, missing), (0, 0)))
    if group == 1:
        question_ids = [name for name in question_ids for _ in range(config.grpo.group_size)]
        row_rewards = row_rewards.reshape(-1, 1)
    return question_ids, row_rewards


def _token_count(sampled: Rollouts) -> int:
    """Tokens of the prompts, each counted once, and of all completions."""
    written = sum(len(completion.tokens) for samples in sampled.completions for completion in samples)
    return sum(map(len, sampled.prompts)) + written
