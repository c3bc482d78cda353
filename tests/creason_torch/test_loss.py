from __future__ import annotations

import numpy as np
import pytest
import torch

from creason_torch.learner import loss as twin
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


def as_tensors(inputs: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The arguments of `objective`; the policy's log-probabilities want a gradient."""
    tensors = {name: torch.tensor(values, dtype=dtype) for name, values in inputs.items()}
    tensors["logprobs"].requires_grad_()
    return tensors


def value_and_gradient(config: GrpoConfig, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    value = twin.objective(config=config, **tensors).loss
    return value.detach(), torch.autograd.grad(value, tensors["logprobs"])[0]


def golden_loss_and_gradient(case: dict, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    config, tensors = golden_config(case), as_tensors(golden_inputs(case), dtype)
    sums = twin.objective(config=config, **tensors)
    value = sums.loss / golden_denominator(case, sums, config)
    (gradient,) = torch.autograd.grad(value, tensors["logprobs"])
    assert value.dtype == gradient.dtype == dtype
    rows, time = golden_arrays(case)["completion_mask"].shape
    assert not gradient[rows:].any() and not gradient[:, time:].any()
    return value.detach(), gradient[:rows, :time]


@pytest.mark.golden
@golden_cases
def test_golden_float32(case):
    value, gradient = golden_loss_and_gradient(case, torch.float32)
    assert float(value) == pytest.approx(case["expected_loss"], rel=0, abs=1e-5)
    assert float(value) == pytest.approx(case["expected_loss_fp32"], rel=0, abs=1e-5)
    np.testing.assert_allclose(gradient, golden_arrays(case)["grad_policy_logps"], rtol=1e-5, atol=1e-5)


@pytest.mark.golden
@golden_cases
def test_golden_float64(case):
    value, gradient = golden_loss_and_gradient(case, torch.float64)
    bound = float64_bound(case)
    assert float(value) == pytest.approx(case["expected_loss"], rel=0, abs=bound)
    np.testing.assert_allclose(gradient, golden_arrays(case)["grad_policy_logps"], rtol=0, atol=bound)


@every_setting
def test_every_setting_agrees_with_the_reference(loss, kind):
    config, inputs = option_config(loss, kind), option_inputs(kind)
    expected = grpo.objective(config=config, **inputs)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        sums = twin.objective(config=config, **as_tensors(inputs, dtype))
        assert all(value.dtype == dtype and value.shape == () for value in sums)
        assert [value.requires_grad for value in sums] == [True] + [False] * (len(sums) - 1)
        for name, value, reference in zip(grpo.Sums._fields, sums, expected, strict=True):
            assert float(value.detach()) == pytest.approx(reference, rel=bound, abs=bound), name


@every_setting
def test_every_gradient_agrees_with_finite_differences(loss, kind):
    config, inputs = option_config(loss, kind), option_inputs(kind)
    expected = finite_differences(config, inputs)
    _, gradient = value_and_gradient(config, as_tensors(inputs, torch.float64))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_masked_garbage_reaches_neither_value_nor_gradient(loss, garbage):
    config, inputs = option_config(loss, "sequence"), option_inputs("sequence")
    clean = value_and_gradient(config, as_tensors(with_garbage(inputs, 0.0)))
    dirty = value_and_gradient(config, as_tensors(with_garbage(inputs, garbage)))
    np.testing.assert_array_equal(dirty[0], clean[0])
    np.testing.assert_array_equal(dirty[1], clean[1])
    assert not dirty[1][~counted_places(inputs)].any() and dirty[1].isfinite().all()


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_on_policy_gradient_is_the_advantage_whatever_the_clip_range(epsilon):
    """At ratio 1 with a clip range of no width both branches meet; the gradient is still -A for each token."""
    config = GrpoConfig(loss="dapo", beta=0.0, epsilon_low=epsilon, epsilon_high=epsilon)
    policy = torch.full((2, 3), -1.25, requires_grad=True)
    twin.objective(policy, torch.tensor([1.5, -0.5]), torch.ones(2, 3), config).loss.backward()
    np.testing.assert_array_equal(policy.grad, np.repeat([[-1.5], [0.5]], 3, axis=1))


def test_k3_keeps_its_precision_in_float32():
    config = GrpoConfig(beta=1.0)
    zero = torch.zeros(1, 1)
    sums = twin.objective(zero, torch.zeros(1), torch.ones(1, 1), config, ref_logprobs=zero + 1e-4)
    assert float(sums.kl) == pytest.approx(5e-9, rel=0.01)
    d = np.float32(1e-4)
    assert np.exp(d) - d - np.float32(1) != pytest.approx(5e-9, rel=0.01)  # the naive form in float32


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_sums_and_gradients_of_parts_add_up(cut):
    config, inputs = option_config("dapo", "corrected"), option_inputs("corrected")
    tensors = as_tensors(inputs, torch.float64)
    joined = grpo.Sums()
    for part in (slice(0, cut), slice(cut, 5)):
        joined = twin.add(joined, twin.objective(config=config, **{k: values[part] for k, values in tensors.items()}))
    whole = grpo.objective(config=config, **inputs)
    np.testing.assert_allclose([float(value.detach()) for value in joined], whole, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(joined.loss, tensors["logprobs"])
    np.testing.assert_allclose(gradient, value_and_gradient(config, tensors)[1], rtol=1e-12)


def test_bfloat16_is_scored_in_float32():
    policy = torch.full((1, 2), -1.0, dtype=torch.bfloat16)
    sums = twin.objective(policy, torch.ones(1), torch.ones(1, 2), GrpoConfig(beta=0.0))
    assert {value.dtype for value in sums} == {torch.float32}


def test_missing_logprobs_and_wrong_shapes_are_named():
    arrays = torch.zeros(1, 1), torch.zeros(1), torch.ones(1, 1)
    with pytest.raises(InputError, match="beta = 0.04"):
        twin.objective(*arrays, GrpoConfig())
    with pytest.raises(InputError, match="rollout_correction = 'token'"):
        twin.objective(*arrays, GrpoConfig(beta=0.0, rollout_correction="token"))
    with pytest.raises(ValueError, match="shape"):
        twin.objective(torch.zeros(1, 2), *arrays[1:], GrpoConfig(beta=0.0))
