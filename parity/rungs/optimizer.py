"""Rung 4: the optimizer alone: AdamW where gradients are so small that its epsilon decides, and clipping; float32."""

from __future__ import annotations

from collections.abc import Iterator

from parity import reference
from parity.check import Check, largest_distance, largest_relative, largest_step_error
from parity.sides import gradient, run_config
from parity.world import Case, World

GRADIENT_BOUND, NORM_BOUND = 1e-5, 1e-6
# Learning rates: where a gradient is nearly 0, its sign, and so the whole of Adam's first steps, is a matter of rounding.
STEP_BOUND = 1e-2
SCALES = (1.0, 1e-4, 1e-8)
LIMITS = (0.5, 1.0, 2.0)  # of the norm, in units of the limit


def checks(world: World) -> Iterator[Check]:
    """On the first family."""
    yield from _small_gradients(world, world.case())
    yield from _clipping(world, world.case())


def _small_gradients(world: World, case: Case) -> Iterator[Check]:
    """Three steps with gradients so small that Adam's epsilon, and where it is added, decides."""
    config = run_config(grpo={"beta": 0.0}, optimizer={"warmup_ratio": 0.0})
    for scale in SCALES:
        batches = [case.batch(number, scale=scale) for number in range(3)]
        expected = reference.updates(case.folder, batches, config)[-1].weights
        start = reference.weights(case.network)
        for side in world.sides:
            learner = side.learner(config, case.folder, steps=len(batches))
            for batch in batches:
                learner.update(batch)
            measured = largest_step_error(side.weights(learner), expected, start, config.optimizer.learning_rate)
            yield Check.of(
                "optimizer",
                f"AdamW, gradients times {scale:g}, {side.name}",
                case.family,
                "float64",
                measured,
                STEP_BOUND,
            )


def _clipping(world: World, case: Case) -> Iterator[Check]:
    """The norm before clipping, then the gradient that Adam saw with the norm at half, once and twice the limit."""
    [exact] = reference.updates(case.folder, [case.batch()], run_config())
    norm = exact.metrics["grad_norm"]
    for times in LIMITS:
        config = run_config(optimizer={"max_grad_norm": norm / times})
        factor = min(1.0, 1 / times)
        expected = {name: value * factor for name, value in exact.gradient.items()}
        for side in world.sides:
            learner = side.learner(config, case.folder, steps=1)
            found = learner.update(case.batch())
            measured = largest_relative({"grad_norm": found["grad_norm"]}, {"grad_norm": norm})
            yield Check.of(
                "optimizer", f"norm at {times:g} x limit, {side.name}", case.family, "float64", measured, NORM_BOUND
            )
            measured = largest_distance(gradient(side, learner), expected)
            what = f"clipped gradient at {times:g} x limit, {side.name}"
            yield Check.of("optimizer", what, case.family, "float64", measured, GRADIENT_BOUND)
