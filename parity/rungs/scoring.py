"""Rung 2: weights as loaded, and the log-probability of every recorded token, float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from parity import recorded, reference
from parity.check import NATS, Check, largest_difference, unequal
from parity.sides import run_config
from parity.world import Case, World
from shared import grpo
from shared.policy import weight_files

BOUND = 1e-5  # nats
PADDING = (1, 17)  # positions more between a prompt and its completions


def checks(world: World) -> Iterator[Check]:
    """Each family on both sides against float64; layouts of the first family against each other."""
    for family in world.families:
        yield from _family(world, world.case(family))
    yield from _layouts(world, world.case())


def _family(world: World, case: Case) -> Iterator[Check]:
    stored = load_file(case.folder / weight_files.SINGLE)
    with torch.no_grad():
        expected = reference.logprobs(case.network, case.batch()).numpy()
    found = {}
    for side in world.sides:
        learner = side.learner(run_config(), case.folder, steps=1)
        measured = unequal(side.weights(learner), stored)
        yield Check.of("scoring", f"weights as loaded, {side.name}", case.family, "the file", measured, 0)
        found[side.name] = by_completion(learner.logprobs(case.batch(), "policy"), case)
        measured = largest_difference(found[side.name], by_completion(whole(expected, case), case), unit=NATS)
        yield Check.of("scoring", f"logprobs, {side.name}", case.family, "float64", measured, BOUND)
    measured = largest_difference(found["jax"], found["torch"], unit=NATS)
    yield Check.of("scoring", "logprobs", case.family, "torch", measured, BOUND)


def whole(scored: np.ndarray, case: Case) -> np.ndarray:
    """`[batch, time]` from `[completions, C]`, 0 where no token counts."""
    batch = case.batch()
    return np.where(batch.completion_mask > 0, grpo.from_completion_view(scored, batch.layout), 0)


def by_completion(scored: np.ndarray, case: Case) -> dict[str, Any]:
    """Log-probabilities `[batch, time]` as rows with a name each."""
    layout = case.batch().layout
    view = grpo.completion_view(scored, layout)
    return {f"question {i // layout.group}, completion {i % layout.group}": row for i, row in enumerate(view)}


def _layouts(world: World, case: Case) -> Iterator[Check]:
    """A row for each completion, and prompts padded further, change nothing."""
    batch = case.batch()
    for side in world.sides:
        learner = side.learner(run_config(), case.folder, steps=1)
        together = grpo.completion_view(learner.logprobs(batch, "policy"), batch.layout)
        apart = grpo.separate_rows(batch)
        found = {"separate rows": grpo.completion_view(learner.logprobs(apart, "policy"), apart.layout)}
        for more in PADDING:
            padded = recorded.with_longer_prompts(batch, batch.layout.prompt + more)
            scored = learner.logprobs(padded, "policy")
            found[f"prompts padded by {more}"] = grpo.completion_view(scored, padded.layout)
        measured = largest_difference(found, dict.fromkeys(found, together), unit=NATS)
        yield Check.of("scoring", f"layouts, {side.name}", case.family, "group rows", measured, BOUND)
