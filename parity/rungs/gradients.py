"""Rung 3: the loss, its metrics, and the gradient of every parameter, float32, through the learners' own update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parity import reference
from parity.check import Check, largest_angle, largest_distance, largest_relative
from parity.sides import gradient, run_config
from parity.world import Case, World
from shared.config import RunConfig, grpo_preset

METRIC_BOUND, GRADIENT_BOUND, ANGLE_BOUND, NORM_BOUND = 1e-6, 1e-5, 1e-9, 1e-6


def checks(world: World) -> Iterator[Check]:
    """The paper's objective for every family, the modern preset for the first."""
    sizes: dict[str, dict[str, float]] = {}
    for family in world.families:
        yield from _family(world, world.case(family), "paper", run_config(), sizes)
    yield from _family(world, world.case(), "modern", run_config(grpo=grpo_preset("modern")), sizes)
    world.curves["gradient error of each parameter"] = sizes


def _family(world: World, case: Case, preset: str, config: RunConfig, sizes: dict[str, Any]) -> Iterator[Check]:
    batch = case.batch()
    [expected] = reference.updates(case.folder, [batch], config)
    metrics, gradients = {}, {}
    for side in world.sides:
        learner = side.learner(config, case.folder, steps=1)
        metrics[side.name] = learner.update(batch)
        gradients[side.name] = gradient(side, learner)
        yield from _against(f"{preset}, {side.name}", case, "float64", metrics[side.name], gradients[side.name],
                            expected.metrics, expected.gradient)  # fmt: skip
        sizes[f"{case.family}, {preset}, {side.name}"] = {
            name: largest_distance({name: gradients[side.name].get(name)}, {name: value})[0]
            for name, value in expected.gradient.items()
        }
    yield from _against(preset, case, "torch", metrics["jax"], gradients["jax"], metrics["torch"], gradients["torch"])


def _against(
    what: str, case: Case, against: str, metrics: Any, gradients: Any, expected_metrics: Any, expected_gradients: Any
) -> Iterator[Check]:
    shared = [name for name in expected_metrics if name in metrics and name != "grad_norm"]
    found, expected = ({name: each[name] for name in shared} for each in (metrics, expected_metrics))
    measured = largest_relative(found, expected, sizes=reference.sizes(case.batch()))
    yield Check.of("gradients", f"metrics, {what}", case.family, against, measured, METRIC_BOUND)
    measured = largest_distance(gradients, expected_gradients)
    yield Check.of("gradients", f"every parameter, {what}", case.family, against, measured, GRADIENT_BOUND)
    measured = largest_angle(gradients, expected_gradients)
    yield Check.of("gradients", f"1 - cosine, {what}", case.family, against, measured, ANGLE_BOUND)
    norms = ({"grad_norm": each["grad_norm"]} for each in (metrics, expected_metrics))
    yield Check.of("gradients", f"norm, {what}", case.family, against, largest_relative(*norms), NORM_BOUND)
