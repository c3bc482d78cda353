"""Rung 7: bfloat16. Each backend is judged by its own error against float64; neither may be much worse than the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity import reference
from parity.check import NATS, Check, Measured, largest_distance, largest_step_error
from parity.rungs.scoring import whole
from parity.sides import gradient, run_config
from parity.world import World

# How many times the other backend's error one may have. XLA's CPU backend keeps more of a bfloat16 product's bits than
# PyTorch's, so on a CPU this is wide.
TIMES = 4.0
TINY_RATE = 1e-6  # the paper's: a bfloat16 weight would not move
# Learning rates. Bfloat16 turns the sign of some of the smallest gradients, and with it Adam's whole first step; masters that
# do not move are at 1, masters rounded to bfloat16 far beyond.
STEP_BOUND = 0.7


def checks(world: World) -> Iterator[Check]:
    """Log-probabilities and gradients of the first family, and masters at the paper's learning rate."""
    case = world.case()
    sections: dict[str, Any] = {"learner": {"compute_dtype": "bfloat16"}, "torch": {"zero_stage": 1}}
    config = run_config(**sections, optimizer={"learning_rate": TINY_RATE, "warmup_ratio": 0.0})
    [exact] = reference.updates(case.folder, [case.batch()], config)
    with torch.no_grad():
        expected = whole(reference.logprobs(case.network, case.batch()).numpy(), case)
    counted = case.batch().completion_mask > 0
    start, rate = reference.weights(case.network), config.optimizer.learning_rate
    errors: dict[str, dict[str, Measured]] = {"logprobs": {}, "gradient": {}}
    for side in world.sides:
        learner = side.learner(config, case.folder, steps=2)
        off = (learner.logprobs(case.batch(), "policy") - expected)[counted]
        typical = float(np.sqrt(np.mean(off**2)))
        errors["logprobs"][side.name] = Measured(typical, "root mean square of all tokens", NATS)
        learner.update(case.batch())
        errors["gradient"][side.name] = largest_distance(gradient(side, learner), exact.gradient)
        measured = largest_step_error(side.weights(learner), exact.weights, start, rate)
        yield Check.of(
            "precision", f"movement of the masters, {side.name}", case.family, "float64", measured, STEP_BOUND
        )
    for what, found in errors.items():
        for name, other in (("jax", "torch"), ("torch", "jax")):
            bound = TIMES * found[other].value
            yield Check.of("precision", f"bfloat16 {what}, {name}", case.family, "float64", found[name], bound)
