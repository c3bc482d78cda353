"""Rung 5: the weights after one and after many optimizer steps on recorded batches, and the rate of each; float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity import reference
from parity.check import Check, largest_difference, largest_distance, largest_relative
from parity.sides import run_config
from parity.world import World

FIRST_BOUND, LAST_BOUND, RATE_BOUND = 1e-5, 1e-4, 1e-12


def checks(world: World) -> Iterator[Check]:
    """The trajectory of the first family."""
    case = world.case()
    steps = world.config.steps
    config = run_config()
    batches = [case.batch(number) for number in range(steps)]
    expected = reference.updates(case.folder, batches, config)
    weights: dict[str, list[dict[str, np.ndarray]]] = {}
    metrics: dict[str, list[dict[str, float]]] = {}
    for side in world.sides:
        learner = side.learner(config, case.folder, steps=steps)
        weights[side.name], metrics[side.name] = [], []
        for batch in batches:
            metrics[side.name].append(learner.update(batch))
            weights[side.name].append(side.weights(learner))
        found = metrics[side.name]
        yield Check.of(
            "updates", f"learning rate of every step, {side.name}", case.family, "Transformers",
            largest_difference(_by_step(found, "learning_rate"), _by_step([e.metrics for e in expected], "learning_rate")),
            RATE_BOUND,
        )  # fmt: skip
        # The first update has rate 0, so the second is the first that moves.
        for what, at, bound in (("after 1 step", 1, FIRST_BOUND), (f"after {steps - 1} steps", steps - 1, LAST_BOUND)):
            measured = largest_distance(weights[side.name][at], expected[at].weights)
            yield Check.of("updates", f"weights {what}, {side.name}", case.family, "float64", measured, bound)
    pair = [weights["jax"], weights["torch"]]
    for what, at, bound in (("after 1 step", 1, FIRST_BOUND), (f"after {steps - 1} steps", steps - 1, LAST_BOUND)):
        yield Check.of(
            "updates", f"weights {what}", case.family, "torch", largest_distance(pair[0][at], pair[1][at]), bound
        )
    for name in ("loss", "grad_norm"):
        measured = largest_relative(
            *(_by_step(metrics[side.name], name) for side in world.sides),
            sizes=dict.fromkeys(_by_step(metrics["jax"], name), reference.sizes(batches[0]).get(name, 0.0)),
        )
        yield Check.of("updates", f"{name} of every step", case.family, "torch", measured, LAST_BOUND)
    world.curves["drift of the weights"] = {
        f"{side.name} from float64": [largest_distance(w, e.weights)[0] for w, e in zip(weights[side.name], expected)]
        for side in world.sides
    } | {"jax from torch": [largest_distance(*each)[0] for each in zip(*pair)]}
    for name in ("loss", "grad_norm"):
        curves = {side.name: [each[name] for each in metrics[side.name]] for side in world.sides}
        world.curves[f"{name} of recorded batches"] = curves | {"float64": [each.metrics[name] for each in expected]}


def _by_step(found: list[dict[str, float]], name: str) -> dict[str, float]:
    return {f"step {step}": each[name] for step, each in enumerate(found)}
