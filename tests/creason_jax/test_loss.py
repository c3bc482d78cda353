from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from creason_jax import loss as twin
from shared import grpo
from shared.config import GrpoConfig
from shared.errors import InputError

GOLDEN = Path(os.environ.get("CREASON_GOLDEN", Path(__file__).resolve().parents[2].parent / "shared" / "golden"))
FOLDER = GOLDEN / "grpo_loss"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"] if FOLDER.is_dir() else []
ALL_LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "vespo", "luspo"]
ROWS, TIME = 12, 32  # golden cases are padded to one shape, so that operations compile once


def golden_config(case: dict) -> GrpoConfig:
    same = [field.name for field in dataclasses.fields(GrpoConfig) if field.name in case]
    return GrpoConfig(
        loss=case["loss_type"],
        ratio_level=case["importance_sampling_level"],
        epsilon_low=case["epsilon"],
        kl_in_ratio=case["kl_bias_correction"],
        **{name: case[name] for name in same},
    )


def golden_arrays(case: dict) -> dict[str, np.ndarray]:
    with np.load(FOLDER / "cases.npz") as stored:
        prefix = case["id"] + "/"
        return {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}


def golden_denominator(case: dict, sums: grpo.Sums, config: GrpoConfig) -> jax.Array:
    """The counts of the whole optimizer batch that a case's settings imply: equal micro-batches, the case is one."""
    steps = case["gradient_accumulation_steps"]
    window = sums._replace(completions=sums.completions * steps, tokens=sums.tokens * steps)
    if case["loss_type"] in ("dapo", "cispo", "vespo"):
        window = window._replace(tokens=case["num_items_in_batch"] * steps / case["steps_per_generation"])
    return twin.denominator(window, config, case["max_completion_length"])


def enlarge(values: np.ndarray) -> np.ndarray:
    """`[ROWS, TIME]` with nan beyond what is there."""
    return np.pad(
        values.astype(np.float64), [(0, ROWS - values.shape[0]), (0, TIME - values.shape[1])], constant_values=np.nan
    )


def golden_loss_and_gradient(case: dict, dtype: type) -> tuple[jax.Array, jax.Array]:
    arrays = golden_arrays(case)
    config = golden_config(case)
    shape = arrays["completion_mask"].shape
    advantages = arrays["advantages"] if arrays["advantages"].ndim == 2 else arrays["advantages"][:, None]
    counted = np.nan_to_num(enlarge(arrays["completion_mask"]))
    policy, old, ref = (jnp.asarray(enlarge(arrays[f"{name}_logps"]), dtype) for name in ("policy", "old", "ref"))

    def loss(policy: jax.Array) -> jax.Array:
        sums = twin.objective(
            policy,
            jnp.asarray(enlarge(np.broadcast_to(advantages, shape)), dtype),
            jnp.asarray(counted),
            config,
            row_mask=jnp.arange(ROWS) < shape[0],
            old_logprobs=old,
            ref_logprobs=ref,
        )
        return sums.loss / golden_denominator(case, sums, config)

    value, gradient = jax.value_and_grad(loss)(policy)
    assert value.dtype == gradient.dtype == dtype
    assert not gradient[shape[0] :].any() and not gradient[:, shape[1] :].any()
    return value, gradient[: shape[0], : shape[1]]


golden_cases = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


@pytest.mark.golden
@pytest.mark.skipif(not CASES, reason=f"no golden cases in {FOLDER}")
def test_golden_cases_are_all_there():
    assert len(CASES) >= 32


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
    bound = 1e-6 if case["loss_type"] == "sapo" else 1e-9  # the oracle rounds SAPO's temperatures to float32
    assert float(value) == pytest.approx(case["expected_loss"], rel=0, abs=bound)
    np.testing.assert_allclose(gradient, golden_arrays(case)["grad_policy_logps"], rtol=0, atol=bound)


OPTIONS: dict[str, dict[str, Any]] = {
    "on_policy": {"beta": 0.04},
    "off_policy": {"beta": 0.04, "delta": 1.6, "kl_in_ratio": True, "kl_estimator": "k2"},
    "corrected": {"beta": 0.1, "rollout_correction": "token", "rollout_correction_cap": 1.2, "kl_estimator": "k1"},
    "sequence": {"rollout_correction": "sequence", "rollout_correction_cap": 1.1, "ratio_level": "sequence"},
    "masked": {"beta": 0.0, "off_policy_mask_threshold": 0.05},
}
GIVEN = {
    "on_policy": ["ref_logprobs"],
    "off_policy": ["ref_logprobs", "old_logprobs"],
    "corrected": ["ref_logprobs", "rollout_logprobs"],
    "sequence": ["ref_logprobs", "old_logprobs", "rollout_logprobs"],
    "masked": ["old_logprobs"],
}


def option_config(loss: Any, kind: str) -> GrpoConfig:
    options = dict(OPTIONS[kind], epsilon_high=1.1 if loss == "cispo" else 0.28)
    if loss == "gspo":
        options["ratio_level"] = "sequence"
    return GrpoConfig(loss=loss, **options)


def random_inputs(kind: str) -> dict[str, np.ndarray]:
    """5 completions of 6 tokens, float32 values, with nan wherever nothing counts."""
    rng = np.random.default_rng(7)
    logprobs = -rng.exponential(1.0, (5, 6))
    near = {name: logprobs + rng.normal(0, 0.3, logprobs.shape) for name in ("old", "ref", "rollout")}
    mask = (rng.random(logprobs.shape) < 0.7).astype(np.float32)
    mask[3] = 0
    arrays: dict[str, Any] = {"logprobs": logprobs} | {f"{name}_logprobs": values for name, values in near.items()}
    arrays = {name: np.where(mask > 0, values, np.nan) for name, values in arrays.items()}
    arrays = {name: values for name, values in arrays.items() if name in ["logprobs", *GIVEN[kind]]}
    arrays |= {"advantages": rng.normal(0, 1, 5), "mask": mask, "row_mask": np.array([1, 1, 1, 1, 0])}
    return {name: values.astype(np.float32) for name, values in arrays.items()}


every_setting = pytest.mark.parametrize(
    ("loss", "kind"), [(loss, kind) for loss in ALL_LOSSES for kind in OPTIONS], ids=lambda value: value
)


@every_setting
def test_every_setting_agrees_with_the_reference(loss, kind):
    config, inputs = option_config(loss, kind), random_inputs(kind)
    expected = grpo.objective(config=config, **inputs)
    sums = twin.objective(config=config, **{name: jnp.asarray(values) for name, values in inputs.items()})
    assert all(value.dtype == jnp.float32 and value.shape == () for value in sums)
    for name, value, reference in zip(grpo.Sums._fields, sums, expected, strict=True):
        assert float(value) == pytest.approx(reference, rel=1e-5, abs=1e-5), name
    assert float(twin.denominator(sums, config, 9)) == grpo.denominator(expected, config, 9)


@every_setting
def test_every_gradient_agrees_with_finite_differences(loss, kind):
    config, inputs = option_config(loss, kind), random_inputs(kind)
    policy = inputs.pop("logprobs").astype(np.float64)
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(values, jnp.float64) for name, values in inputs.items()}
        gradient = jax.grad(lambda policy: twin.objective(policy, config=config, **arrays).loss)(jnp.asarray(policy))
    expected = np.zeros_like(policy)
    for place in np.ndindex(policy.shape):
        step = np.zeros_like(policy)
        step[place] = 1e-6
        up, down = (grpo.objective(policy + s, config=config, detached=policy, **inputs).loss for s in (step, -step))
        expected[place] = (up - down) / 2e-6
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_masked_garbage_reaches_neither_value_nor_gradient(loss, garbage):
    config, inputs = option_config(loss, "sequence"), random_inputs("sequence")
    mask = (inputs["mask"] > 0) & (inputs["row_mask"] > 0)[:, None]

    def value_and_gradient(fill: float) -> tuple[jax.Array, jax.Array]:
        arrays = {name: jnp.where(mask, v, fill) if "log" in name else jnp.asarray(v) for name, v in inputs.items()}
        policy = arrays.pop("logprobs")
        return jax.value_and_grad(lambda policy: twin.objective(policy, config=config, **arrays).loss)(policy)

    clean, dirty = value_and_gradient(0.0), value_and_gradient(garbage)
    np.testing.assert_array_equal(dirty[0], clean[0])
    np.testing.assert_array_equal(dirty[1], clean[1])
    assert not np.asarray(dirty[1])[~mask].any() and np.isfinite(dirty[1]).all()


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
    config, inputs = option_config("dapo", "corrected"), random_inputs("corrected")
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
