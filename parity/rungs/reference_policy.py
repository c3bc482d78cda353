"""Rung 6: the reference policy, mixed with the policy; float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity import reference
from parity.check import NATS, Check, largest_difference
from parity.rungs.scoring import whole
from parity.sides import Side, run_config
from parity.world import Case, World

BOUND = 2e-5  # nats


def checks(world: World) -> Iterator[Check]:
    """After the mix the reference policy is 0.9 new + 0.1 old, each side's own: by what it scores."""
    case = world.case()
    config = run_config(optimizer={"warmup_ratio": 0.0})
    for side in world.sides:
        learner = side.learner(config, case.folder, steps=2, reference=True)
        learner.update(case.batch())
        learner.sync_reference()
        found = learner.logprobs(case.batch(), "reference")
        expected = _mixed_logprobs(case, side, learner, config.grpo.ref_mixup)
        measured = largest_difference({"token": found}, {"token": expected}, unit=NATS)
        yield Check.of("reference", f"mixed policy, {side.name}", case.family, "float64", measured, BOUND)


def _mixed_logprobs(case: Case, side: Side, learner: Any, mixup: float) -> np.ndarray:
    """Log-probabilities `[batch, time]` of a float64 network with the mix of old and new weights."""
    new = side.weights(learner)
    network = reference.network(case.folder)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.mul_(1 - mixup).add_(mixup * torch.from_numpy(new[name]).double())
        return whole(reference.logprobs(network, case.batch()).numpy(), case)
