from __future__ import annotations

import numpy as np
import pytest
import torch

from creason_torch.model.logprobs import entropy, target_logprobs, token_logprobs
from tests.support.recorded import Recorded

BATCH, TIME, MODEL, VOCAB = 3, 10, 16, 37


def random_inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """hidden, weight, targets and a cotangent of the log-probabilities."""
    rng = np.random.default_rng(seed)
    hidden, weight = rng.normal(size=(BATCH, TIME, MODEL)), rng.normal(size=(VOCAB, MODEL))
    targets, cotangent = rng.integers(0, VOCAB, (BATCH, TIME)), rng.normal(size=(BATCH, TIME))
    return (
        torch.tensor(hidden, dtype=dtype),
        torch.tensor(weight, dtype=dtype),
        torch.tensor(targets),
        torch.tensor(cotangent, dtype=torch.promote_types(dtype, torch.float32)),
    )


def naive(hidden, weight, targets, cotangent, temperature=1.0) -> tuple[np.ndarray, ...]:
    """Log-probabilities, entropies and the gradients of hidden and weight, in float64."""
    hidden, weight, cotangent = (each.double().numpy() for each in (hidden, weight, cotangent))
    logits = hidden @ weight.T / temperature
    logits = logits - logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    probabilities = np.exp(logs)
    onehot = np.eye(len(weight))[targets]
    back = cotangent[..., None] * (onehot - probabilities) / temperature
    gradients = back @ weight, np.einsum("btv,btd->vd", back, hidden)
    return (logs * onehot).sum(-1), -(probabilities * logs).sum(-1), *gradients


def value_and_gradients(hidden, weight, targets, cotangent, **options) -> tuple[torch.Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropies = token_logprobs(hidden, weight, targets, **options)
    assert logprobs.requires_grad and not entropies.requires_grad
    return logprobs.detach(), entropies, *torch.autograd.grad(logprobs, (hidden, weight), cotangent)


# One token at a time, 7 that do not divide 30, 10 that do, and more than there are.
@pytest.mark.parametrize("chunk", [1, 7, 10, 999])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
def test_values_and_gradients_equal_a_naive_log_softmax(chunk, dtype, bound):
    inputs = random_inputs(dtype=dtype)
    found, expected = value_and_gradients(*inputs, chunk=chunk), naive(*inputs)
    for name, ours, reference in zip(("logprobs", "entropy", "hidden", "weight"), found, expected, strict=True):
        assert ours.dtype == dtype and ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, rtol=bound, atol=bound, err_msg=name)


def test_the_temperature_divides_the_logits():
    inputs = random_inputs(1)
    found = value_and_gradients(*inputs, chunk=9, temperature=0.5)
    expected = naive(*inputs, temperature=0.5)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-6, atol=1e-5)
    assert np.abs(expected[0] - naive(*inputs)[0]).max() > 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_pass_gradcheck(temperature):
    hidden, weight, targets, _ = random_inputs(2, torch.float64)

    def score(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return token_logprobs(hidden, weight, targets[:2, :4], chunk=3, temperature=temperature)[0]

    inputs = hidden[:2, :4].clone().requires_grad_(), weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(score, inputs)


def test_32_bit_targets_and_frozen_inputs_are_taken():
    hidden, weight, targets, cotangent = random_inputs()
    expected = value_and_gradients(hidden, weight, targets, cotangent, chunk=8)
    for frozen in (0, 1):
        inputs = [hidden.clone(), weight.clone()]
        inputs[1 - frozen].requires_grad_()
        logprobs, _ = token_logprobs(*inputs, targets.int(), chunk=8)
        logprobs.backward(cotangent)
        assert inputs[frozen].grad is None
        assert torch.equal(inputs[1 - frozen].grad, expected[3 - frozen])
    with torch.no_grad():
        assert not token_logprobs(*inputs, targets, chunk=8)[0].requires_grad


def test_entropy_of_known_distributions():
    certain, half = torch.zeros(8), torch.full((8,), -200.0)
    certain[3], half[:2] = 200, 5
    found = entropy(torch.stack([torch.zeros(8), half, certain]))
    np.testing.assert_allclose(found, [np.log(8), np.log(2), 0.0], rtol=0, atol=1e-6)


def test_large_logits_are_stable():
    logits = torch.tensor([3e4, 3e4 - 1, -3e4]).expand(3, 3)
    found = target_logprobs(logits, torch.arange(3))
    np.testing.assert_allclose(found, np.array([0, -1, -6e4]) - np.log1p(np.exp(-1)), rtol=1e-6, atol=3e-3)


def test_no_tensor_holds_all_logits_and_none_is_kept():
    """Whatever the number of tokens, at most a chunk of them has logits, forwards and backwards."""
    model, vocab, chunk = 8, 1_009, 20

    def record(tokens: int) -> Recorded:
        hidden = torch.randn(2, tokens // 2, model, requires_grad=True)
        weight = torch.randn(vocab, model, requires_grad=True)
        with Recorded() as recorded:
            token_logprobs(hidden, weight, torch.zeros(2, tokens // 2), chunk=chunk)[0].sum().backward()
        return recorded

    for tokens in (110, 1_010):
        recorded = record(tokens)
        assert recorded.largest(of=vocab) == recorded.largest() == chunk * vocab
        assert sorted(recorded.kept) == sorted([(tokens, model), (vocab, model), (tokens,)])


def test_an_unchunked_log_softmax_is_noticed_by_the_recorder():
    hidden, weight = torch.randn(110, 8, requires_grad=True), torch.randn(1_009, 8)
    with Recorded() as recorded:
        (hidden @ weight.t()).log_softmax(-1)[:, 0].sum().backward()
    assert recorded.largest() == 110 * 1_009 and (110, 1_009) in recorded.kept


def test_bfloat16_products_become_float32_logits():
    """The same bfloat16 numbers: equal to a float32 log-softmax of float32 sums, unlike the bfloat16 path."""
    hidden, weight, targets, cotangent = random_inputs(3, torch.bfloat16)
    logits = hidden.float() @ weight.float().t()
    found = value_and_gradients(hidden, weight, targets, cotangent, chunk=7)
    expected = naive(hidden, weight, targets, cotangent)
    wide = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    lossy = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert found[0].dtype == found[1].dtype == torch.float32
    assert (found[0] - wide).abs().max() < 2e-6
    assert (found[1] - entropy(logits)).abs().max() < 2e-6
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    assert np.abs(lossy.double().numpy() - expected[0]).max() > 1e-3
    assert (lossy.float() - wide).abs().max() > 1e-3
    # The gradients come out in bfloat16, one rounding away from the sums.
    for ours, reference in zip(found[2:], expected[2:], strict=True):
        assert ours.dtype == torch.bfloat16
        np.testing.assert_allclose(ours.float(), reference, rtol=2**-8, atol=1e-5)


def test_bfloat16_logits_are_normalised_in_float32():
    """The same bfloat16 logits: near float64 here, lost by up to 4e-2 nat in a bfloat16 log-softmax."""
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(0, 2, (BATCH, TIME, 64)), dtype=torch.bfloat16)
    targets = torch.tensor(rng.integers(0, 64, (BATCH, TIME)))
    expected = naive(logits, torch.eye(64), targets, torch.zeros(BATCH, TIME))
    # Products with the identity hand on the logits themselves.
    found = token_logprobs(logits, torch.eye(64, dtype=torch.bfloat16), targets, chunk=7)
    for ours, reference in zip(found, expected[:2], strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-6)
    lossy = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert np.abs(lossy.double().numpy() - expected[0]).max() > 1e-3


def test_the_gradient_of_the_head_is_summed_over_chunks_in_float32():
    """Many small chunks of bfloat16: still one rounding of the whole sum, and none under a float32 head."""
    rng = np.random.default_rng(4)
    hidden = torch.tensor(rng.normal(size=(4, 500, MODEL)), dtype=torch.bfloat16)
    weight = torch.tensor(0.1 * rng.normal(size=(VOCAB, MODEL)), dtype=torch.bfloat16)
    targets, cotangent = torch.zeros(4, 500, dtype=torch.long), torch.ones(4, 500)
    expected = naive(hidden, weight, targets, cotangent)[3]
    *_, gradient = value_and_gradients(hidden, weight, targets, cotangent, chunk=4)
    np.testing.assert_allclose(gradient.float(), expected, rtol=2**-8, atol=1e-3)
    *_, gradient = value_and_gradients(hidden, weight.float(), targets, cotangent, chunk=4)
    assert gradient.dtype == torch.float32
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_products_of_an_accelerator_are_asked_for_in_float32(dtype):
    """Tensors without data, on a device that is not the CPU: shapes and dtypes of both passes, as a GPU would see them."""
    hidden = torch.zeros(BATCH, TIME, MODEL, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.zeros(VOCAB, MODEL, dtype=dtype, device="meta", requires_grad=True)
    logprobs, entropies = token_logprobs(hidden, weight, torch.zeros(BATCH, TIME, device="meta"), chunk=8)
    assert logprobs.dtype == entropies.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    assert hidden.grad.shape == hidden.shape and weight.grad.shape == weight.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_bfloat16_on_a_gpu_equals_float64():
    inputs = random_inputs(3, torch.bfloat16)
    expected = naive(*inputs)
    found = value_and_gradients(*(each.cuda() for each in inputs), chunk=7)
    for ours, reference in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours.cpu(), reference, rtol=0, atol=1e-5)
    for ours, reference in zip(found[2:], expected[2:], strict=True):
        np.testing.assert_allclose(ours.float().cpu(), reference, rtol=2**-6, atol=2e-2)
