"""Rung 11: a run that changes its backend half way, optimizer state and reference policy included; float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.check import NATS, Check, largest_difference, largest_distance, unequal
from parity.sides import Side, run_config
from parity.world import Case, World

WEIGHT_BOUND, LOGPROB_BOUND = 1e-4, 1e-4
SECTIONS: dict[str, dict[str, Any]] = {"learner": {"micro_batch_rows": 2}}  # three micro-batches, one of them padded


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a run on the recorded batches ended with."""

    weights: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    reference_logprobs: np.ndarray


def checks(world: World) -> Iterator[Check]:
    """Whole runs on either backend, halves on one and halves on the other, and a checkpoint there and back."""
    case, steps = world.case(), world.config.steps
    whole = {side.name: _ended(side, _learn(case, side, steps, range(steps)), case) for side in world.sides}
    for first, second in (world.sides, world.sides[::-1]):
        folder = world.folder / "exchange" / first.name
        learner = _learn(case, first, steps, range(steps // 2))
        learner.save(folder, steps // 2, {"position": 7})
        learner.finish_saves()
        other = _learn(case, second, steps, range(0))
        at, noted = other.restore(folder)
        what = f"{first.name}, then {second.name}"
        measured = unequal({"step": at, "position": noted.get("position")}, {"step": steps // 2, "position": 7})
        yield Check.of("exchange", f"where it goes on, {what}", case.family, first.name, measured, 0)
        yield from _there_and_back(world, case, first, second, learner, other)
        for number in range(steps // 2, steps):
            _step(other, case, number, steps)
        ended = _ended(second, other, case)
        for name, expected in whole.items():
            measured = largest_distance(ended.weights, expected.weights)
            yield Check.of("exchange", f"weights, {what}", case.family, f"{name} alone", measured, WEIGHT_BOUND)
            measured = largest_difference(
                {"token": ended.reference_logprobs}, {"token": expected.reference_logprobs}, unit=NATS
            )
            yield Check.of("exchange", f"reference, {what}", case.family, f"{name} alone", measured, LOGPROB_BOUND)


def _there_and_back(world: World, case: Case, first: Side, second: Side, learner: Any, other: Any) -> Iterator[Check]:
    """The checkpoint that `other` restored, saved by it and restored by the first backend: the same bits."""
    steps = world.config.steps
    folder = world.folder / "exchange" / f"{first.name}-{second.name}"
    other.save(folder, steps // 2, {"position": 7})
    other.finish_saves()
    again = _learn(case, first, steps, range(0))
    again.restore(folder)
    found, expected = _ended(first, again, case), _ended(first, learner, case)
    for name in ("weights", "moments"):
        measured = unequal(getattr(found, name), getattr(expected, name))
        what = f"{name}, {first.name} to {second.name} to {first.name}"
        yield Check.of("exchange", what, case.family, "the same bits", measured, 0)
    pair = ({"token": each.reference_logprobs} for each in (found, expected))
    what = f"reference, {first.name} to {second.name} to {first.name}"
    yield Check.of("exchange", what, case.family, "the same bits", unequal(*pair), 0)


def _learn(case: Case, side: Side, steps: int, numbers: range) -> Any:
    """A learner whose schedule ends at `steps`, after the updates in `numbers`."""
    learner = side.learner(run_config(**SECTIONS), case.folder, steps=steps, reference=True)
    for number in numbers:
        _step(learner, case, number, steps)
    return learner


def _step(learner: Any, case: Case, number: int, steps: int) -> None:
    learner.update(case.batch(number))
    if (number + 1) % max(1, steps // 4) == 0:
        learner.sync_reference()


def _ended(side: Side, learner: Any, case: Case) -> Ended:
    return Ended(side.weights(learner), side.moments(learner), learner.logprobs(case.batch(), "reference"))
