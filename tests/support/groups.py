"""Random groups for a small model: batches of token ids with the numbers that an update needs. No framework."""

from __future__ import annotations

import dataclasses

import numpy as np

from shared import grpo
from shared.grpo import GroupBatch, GroupLayout

VOCABULARY = 320
LAYOUT = GroupLayout(prompt=10, group=2, completion=6)
LONG_ROW = GroupLayout(prompt=1_900, group=1, completion=100)
MODEL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
# One update shows in float32, and is a smooth function of the gradient: with Adam's usual eps the first update is
# nearly its sign, which rounding decides where a gradient is almost 0.
OPTIMIZER = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "eps": 1e-3}


def random_batch(
    rows: int,
    *,
    seed: int = 0,
    layout: GroupLayout = LAYOUT,
    vocabulary: int = VOCABULARY,
    masked: tuple[int, int] | None = None,
) -> GroupBatch:
    """Groups with prompts and completions of unequal length, advantages of both signs, and reference and engine
    log-probabilities near those of a random policy. No token counts in the completion `masked` (row, sample)."""
    rng = np.random.default_rng(seed)
    count = (rows, layout.group)
    prompts = [_ids(rng, length, vocabulary) for length in rng.integers(layout.prompt // 2, layout.prompt + 1, rows)]
    lengths = rng.integers(1, layout.completion + 1, count)
    completions = [[_ids(rng, length, vocabulary) for length in each] for each in lengths]
    counts = [[np.full(n, float((row, i) != masked)) for i, n in enumerate(each)] for row, each in enumerate(lengths)]
    near = [[rng.normal(-np.log(vocabulary), 0.3, n) for n in each] for each in lengths]
    advantages = rng.normal(size=count)
    batch = grpo.pack(
        prompts, completions, layout, advantages=advantages, completion_masks=counts, rollout_logprobs=near
    )
    noise = rng.normal(0, 0.3, batch.tokens.shape).astype(np.float32)
    assert batch.rollout_logprobs is not None
    return dataclasses.replace(batch, ref_logprobs=(batch.rollout_logprobs + noise) * batch.completion_mask)


def _ids(rng: np.random.Generator, length: int, vocabulary: int) -> np.ndarray:
    return rng.integers(4, vocabulary, length).astype(np.int32)
