from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from creason_jax.model.logprobs import entropy, target_logprobs, token_logprobs

BATCH, TIME, MODEL, VOCAB = 3, 10, 16, 37


def random_inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """hidden, head, targets and a cotangent of the log-probabilities."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(BATCH, TIME, MODEL)).astype(np.float32)
    head = rng.normal(size=(MODEL, VOCAB)).astype(np.float32)
    return hidden, head, rng.integers(0, VOCAB, (BATCH, TIME)), rng.normal(size=(BATCH, TIME)).astype(np.float32)


def naive(hidden, head, targets, cotangent, temperature=1.0):
    """Log-probabilities, entropies and the gradients of hidden and head, in float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logits = hidden @ head / temperature
    logits = logits - logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    probabilities = np.exp(logs)
    onehot = np.eye(head.shape[1])[targets]
    back = cotangent[..., None] * (onehot - probabilities) / temperature
    gradients = back @ head.T, np.einsum("btd,btv->dv", hidden, back)
    return (logs * onehot).sum(-1), -(probabilities * logs).sum(-1), *gradients


@functools.partial(jax.jit, static_argnames=("chunk", "temperature"))
def value_and_gradients(hidden, head, targets, cotangent, chunk, temperature=1.0):
    def run(hidden, head):
        return token_logprobs(hidden, head, targets, chunk=chunk, temperature=temperature)

    (logprobs, entropies), back = jax.vjp(run, hidden, head)
    return logprobs, entropies, *back((cotangent, jnp.ones_like(entropies)))


# Chunks of 1, 3 and 10 positions of the three rows; 3 does not divide 10, and 999 is more than there is.
@pytest.mark.parametrize("chunk", [1, 9, 999])
def test_values_and_gradients_equal_a_naive_log_softmax(chunk):
    inputs = random_inputs()
    found, expected = value_and_gradients(*inputs, chunk), naive(*inputs)
    for name, ours, reference in zip(("logprobs", "entropy", "hidden", "head"), found, expected, strict=True):
        assert ours.dtype == jnp.float32 and ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, rtol=2e-6, atol=5e-6, err_msg=name)


def test_the_temperature_divides_the_logits():
    inputs = random_inputs(1)
    found, expected = value_and_gradients(*inputs, 9, temperature=0.5), naive(*inputs, temperature=0.5)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-6, atol=1e-5)
    assert np.abs(expected[0] - naive(*inputs)[0]).max() > 1


def test_entropy_of_known_distributions():
    certain, half = np.zeros(8, np.float32), np.full(8, -200, np.float32)
    certain[3], half[:2] = 200, 5
    found = jax.jit(entropy)(np.stack([np.zeros(8, np.float32), half, certain]))
    np.testing.assert_allclose(found, [np.log(8), np.log(2), 0.0], rtol=0, atol=1e-6)


def test_large_logits_are_stable():
    logits = np.array([3e4, 3e4 - 1, -3e4], np.float32)
    found = jax.jit(target_logprobs)(np.stack([logits] * 3), np.arange(3))
    np.testing.assert_allclose(found, np.array([0, -1, -6e4]) - np.log1p(np.exp(-1)), rtol=1e-6, atol=3e-3)


def test_no_array_holds_all_logits():
    """Memory of the gradient: far below one float32 `[tokens, vocabulary]` array, which an unchunked one exceeds."""
    batch, time, model, vocab = 8, 512, 64, 4_096
    full = batch * time * vocab * 4
    inputs = (
        jax.ShapeDtypeStruct((batch, time, model), jnp.float32),
        jax.ShapeDtypeStruct((model, vocab), jnp.float32),
        jax.ShapeDtypeStruct((batch, time), jnp.int32),
        jax.ShapeDtypeStruct((batch, time), jnp.float32),
    )

    def temporary(chunk: int) -> int:
        return value_and_gradients.lower(*inputs, chunk).compile().memory_analysis().temp_size_in_bytes

    assert temporary(batch * time) > full
    assert temporary(256) < full / 4


def test_bfloat16_logits_are_normalised_in_float32():
    """The same bfloat16 logits: near float64 here, lost by up to 4e-2 nat in a bfloat16 log-softmax."""
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(0, 2, (BATCH, TIME, 64)), jnp.bfloat16)
    targets = rng.integers(0, 64, (BATCH, TIME))
    expected = naive(logits, np.eye(64), targets, np.zeros((BATCH, TIME)))
    # Products with the identity hand on the logits themselves.
    found = token_logprobs(logits, jnp.eye(64, dtype=jnp.float32), targets, chunk=7)
    for ours, reference in zip(found, expected[:2], strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-6)
    lossy = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]
    assert np.abs(np.asarray(lossy, np.float64) - expected[0]).max() > 1e-3


def test_bfloat16_hidden_states_make_float32_logits():
    """Products of bfloat16 numbers are summed and kept in float32: the error is that of the inputs alone."""
    hidden, head, targets, cotangent = random_inputs(3)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    expected = naive(hidden, head, targets, cotangent)
    logprobs, entropies, hidden_gradient, head_gradient = value_and_gradients(
        hidden, head.astype(jnp.float32), targets, cotangent, 9
    )
    np.testing.assert_allclose(logprobs, expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(entropies, expected[1], rtol=0, atol=1e-5)
    assert hidden_gradient.dtype == jnp.bfloat16 and head_gradient.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(hidden_gradient, np.float32), expected[2], rtol=2e-2, atol=5e-2)
    rounded = (hidden.reshape(-1, MODEL) @ head).astype(jnp.float32).reshape(BATCH, TIME, -1)
    assert np.abs(target_logprobs(rounded, targets) - expected[0]).max() > 1e-3


def test_logits_are_float32_in_the_program_too():
    """A compiler may keep more precision than asked for, so values alone do not tell what was asked for."""
    hidden, head, targets, _ = random_inputs()
    scored = jax.jit(functools.partial(token_logprobs, chunk=9))
    text = scored.lower(jnp.asarray(hidden, jnp.bfloat16), head, targets).as_text()
    (product,) = re.findall(r"dot_general.* : \((.*)\) -> (.*)", text)
    assert product[0].count("xbf16>") == 2 and product[1].endswith("xf32>")
