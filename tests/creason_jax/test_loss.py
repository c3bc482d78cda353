from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from creason_jax.learner import loss as twin
from shared import grpo
from shared.config import GrpoConfig
from shared.errors import InputError
from tests.support.golden_grpo import (
    ALL_LOSSES,
    counted_places,
    every_setting,
    finite_differences,
    float64_bound,
    golden_arrays,
    golden_cases,
    golden_config,
    golden_denominator,
    golden_inputs,
    option_config,
    option_inputs,
    with_garbage,
)

pytestmark = pytest.mark.slow


def golden_loss_and_gradient(case: dict, dtype: type) -> tuple[jax.Array, jax.Array]:
    config = golden_config(case)
    arrays = {name: jnp.asarray(values, dtype) for name, values in golden_inputs(case).items()}
    policy = arrays.pop("logprobs")

    def loss(policy: jax.Array) -> tuple[jax.Array, grpo.Sums]:
        sums = twin.objective(policy, config=config, **arrays)
        return sums.loss, sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(policy)
    divisor = float(golden_denominator(case, sums, config))
    value, gradient = value / divisor, gradient / divisor
    assert value.dtype == gradient.dtype == dtype
    rows, time = golden_arrays(case)["completion_mask"].shape
    assert not gradient[rows:].any() and not gradient[:, time:].any()
    return value, gradient[:rows, :time]


@pytest.mark.golden
@golden_cases
def test_golden_float32(case):
    value, gradient = golden_loss_and_gradient(case, jnp.float32)
    assert float(value) == pytest.approx(case["expected_loss"], rel=0, abs=1e-5)
    assert float(value) == pytest.approx(case["expected_loss_fp32"], rel=0, abs=1e-5)
    np.testing.assert_allclose(gradient, golden_arrays(case)["grad_policy_logps"], rtol=1e-5, atol=1e-5)


@pytest.mark.golden
@golden_cases
def test_golden_float64(case):
    with jax.enable_x64(True):
        value, gradient = golden_loss_and_gradient(case, jnp.float64)
    bound = float64_bound(case)
    assert float(value) == pytest.approx(case["expected_loss"], rel=0, abs=bound)
    np.testing.assert_allclose(gradient, golden_arrays(case)["grad_policy_logps"], rtol=0, atol=bound)


@every_setting
def test_every_setting_agrees_with_the_reference(loss, kind):
    config, inputs = option_config(loss, kind), option_inputs(kind)
    expected = grpo.objective(config=config, **inputs)
    sums = twin.objective(config=config, **{name: jnp.asarray(values) for name, values in inputs.items()})
    assert all(value.dtype == jnp.float32 and value.shape == () for value in sums)
    for name, value, reference in zip(grpo.Sums._fields, sums, expected, strict=True):
        assert float(value) == pytest.approx(reference, rel=1e-5, abs=1e-5), name


@every_setting
def test_every_gradient_agrees_with_finite_differences(loss, kind):
    config, inputs = option_config(loss, kind), option_inputs(kind)
    expected = finite_differences(config, inputs)
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(values, jnp.float64) for name, values in inputs.items()}
        policy = arrays.pop("logprobs")
        gradient = jax.grad(lambda policy: twin.objective(policy, config=config, **arrays).loss)(policy)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_masked_garbage_reaches_neither_value_nor_gradient(loss, garbage):
    config, inputs = option_config(loss, "sequence"), option_inputs("sequence")

    def value_and_gradient(fill: float) -> tuple[jax.Array, jax.Array]:
        arrays = {name: jnp.asarray(values) for name, values in with_garbage(inputs, fill).items()}
        policy = arrays.pop("logprobs")
        return jax.value_and_grad(lambda policy: twin.objective(policy, config=config, **arrays).loss)(policy)

    clean, dirty = value_and_gradient(0.0), value_and_gradient(garbage)
    np.testing.assert_array_equal(dirty[0], clean[0])
    np.testing.assert_array_equal(dirty[1], clean[1])
    assert not np.asarray(dirty[1])[~counted_places(inputs)].any() and np.isfinite(dirty[1]).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_on_policy_gradient_is_the_advantage_whatever_the_clip_range(epsilon):
    """At ratio 1 with a clip range of no width both branches meet; the gradient is still -A for each token."""
    config = GrpoConfig(loss="dapo", beta=0.0, epsilon_low=epsilon, epsilon_high=epsilon)
    advantages = jnp.array([1.5, -0.5])

    def loss(policy: jax.Array) -> jax.Array:
        return twin.objective(policy, advantages, jnp.ones((2, 3)), config).loss

    gradient = jax.grad(loss)(jnp.full((2, 3), -1.25))
    np.testing.assert_array_equal(gradient, np.repeat([[-1.5], [0.5]], 3, axis=1))


def test_k3_keeps_its_precision_in_float32():
    config = GrpoConfig(beta=1.0)
    zero = jnp.zeros((1, 1))
    sums = twin.objective(zero, jnp.zeros(1), jnp.ones((1, 1)), config, ref_logprobs=zero + 1e-4)
    assert float(sums.kl) == pytest.approx(5e-9, rel=0.01)
    d = np.float32(1e-4)
    assert np.exp(d) - d - np.float32(1) != pytest.approx(5e-9, rel=0.01)  # the naive form in float32


def test_one_compilation_serves_all_batches_and_sums_add_inside_it():
    config, inputs = option_config("dapo", "corrected"), option_inputs("corrected")
    traces = []

    @functools.partial(jax.jit, static_argnames="config")
    def step(config: GrpoConfig, **arrays: jax.Array) -> grpo.Sums:
        traces.append(1)
        first = {name: values[:2] for name, values in arrays.items()}
        rest = {name: values[2:] for name, values in arrays.items()}
        return twin.add(twin.objective(config=config, **first), twin.objective(config=config, **rest))

    whole = grpo.objective(config=config, **inputs)
    np.testing.assert_allclose(step(config, **inputs), whole, rtol=1e-5, atol=1e-5)
    step(dataclasses.replace(config), **(inputs | {"advantages": -inputs["advantages"]}))
    assert len(traces) == 1


def test_bfloat16_is_scored_in_float32():
    policy = jnp.full((1, 2), -1.0, jnp.bfloat16)
    sums = twin.objective(policy, jnp.ones(1), jnp.ones((1, 2)), GrpoConfig(beta=0.0))
    assert {value.dtype for value in sums} == {jnp.dtype(jnp.float32)}


def test_missing_logprobs_and_wrong_shapes_are_named():
    arrays = jnp.zeros((1, 1)), jnp.zeros(1), jnp.ones((1, 1))
    with pytest.raises(InputError, match="beta = 0.04"):
        twin.objective(*arrays, GrpoConfig())
    with pytest.raises(ValueError, match="shape"):
        twin.objective(jnp.zeros((1, 2)), *arrays[1:], GrpoConfig(beta=0.0))
