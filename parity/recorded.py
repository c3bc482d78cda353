"""The recorded batches that both backends learn from: never live sampling, so that only the learners are compared."""

from __future__ import annotations

import dataclasses

import numpy as np

from parity.families import VOCABULARY
from shared import grpo
from shared.grpo import GroupBatch, GroupLayout
from shared.randomness import generator

QUESTIONS, GROUP = 5, 7  # the paper's optimizer batch: 35 completions
LAYOUT = GroupLayout(prompt=48, group=GROUP, completion=24)
MASKED = (1, 2)  # the question and the sample whose tokens do not count, as of a completion that was cut
RIGHT = (3, 1, 0, 7, 5)  # right answers of each group: two groups are uniform
DRIFT = 0.1  # nats: how far old, rollout and reference log-probabilities are from the policy's


def batch(seed: int, *, scale: float = 1.0) -> GroupBatch:
    """Prompts and completions of unequal length with the advantages of their rewards times `scale`.

    The log-probabilities of old policy, reference and engine are those of chance until `around` sets them.
    """
    rng = generator(seed, "parity")
    prompts = [_ids(rng, length) for length in rng.integers(LAYOUT.prompt // 2, LAYOUT.prompt + 1, QUESTIONS)]
    lengths = rng.integers(1, LAYOUT.completion + 1, (QUESTIONS, GROUP))
    completions = [[_ids(rng, length) for length in each] for each in lengths]
    truncated = np.zeros((QUESTIONS, GROUP), bool)
    truncated[MASKED] = True
    made = grpo.pack(
        prompts,
        completions,
        LAYOUT,
        advantages=grpo.advantages(rewards(), "group") * scale,
        completion_masks=grpo.completion_masks(completions, truncated, mask_truncated=True),
    )
    return around(made, np.full(made.tokens.shape, -np.log(VOCABULARY)), seed)


def rewards() -> np.ndarray:
    """`[questions, G]`, 1 where an answer is right."""
    return (np.arange(GROUP) < np.array(RIGHT)[:, None]).astype(np.float64)


def around(made: GroupBatch, logprobs: np.ndarray, seed: int) -> GroupBatch:
    """The batch with old, reference and rollout log-probabilities near `logprobs` `[batch, time]`, different ones."""
    rng = generator(seed, "parity", "drift")
    names = ("old_logprobs", "ref_logprobs", "rollout_logprobs")  # in the order in which they are drawn
    drawn = {name: rng.normal(0, DRIFT, logprobs.shape) for name in names}
    near = {name: ((logprobs + each) * made.completion_mask).astype(np.float32) for name, each in drawn.items()}
    return dataclasses.replace(made, **near)


def with_longer_prompts(batch: GroupBatch, prompt: int) -> GroupBatch:
    """The batch with its prompts padded to `prompt` positions."""
    extra = prompt - batch.layout.prompt
    at = batch.layout.prompt

    def wider(array: np.ndarray, fill: int) -> np.ndarray:
        return np.insert(array, [at] * extra, fill, axis=1)

    arrays = {
        field.name: wider(getattr(batch, field.name), -1 if field.name == "groups" else 0)
        for field in dataclasses.fields(batch)
        if field.name != "layout" and getattr(batch, field.name) is not None
    }
    return dataclasses.replace(batch, layout=dataclasses.replace(batch.layout, prompt=prompt), **arrays)


def _ids(rng: np.random.Generator, length: int) -> np.ndarray:
    """Of the whole vocabulary: tokens that pad or end a text elsewhere are tokens like any other here."""
    return rng.integers(0, VOCABULARY, length).astype(np.int32)
