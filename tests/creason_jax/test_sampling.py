from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from creason_jax.model.attention import MASKED
from creason_jax.rollout.sampling import draw, filtered
from shared.backend import BELOW_ONE
from tests.support.sampling_laws import assert_frequencies, chi_square, filtered_law, softmax

jitted = jax.jit(draw, static_argnames=("temperature", "top_k", "top_p", "min_p"))


def test_draws_follow_the_softmax():
    """One evenly spaced grid of uniforms: each token as often as its probability, to one draw at each of its ends."""
    logits = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)
    count = 40_000
    grid = (np.arange(count, dtype=np.float32) + 0.5) / count
    found = jitted(jnp.broadcast_to(logits, (count, 50)), grid, temperature=0.7)
    assert found.dtype == jnp.int32
    assert_frequencies(np.asarray(found), logits, 0.7)


def test_random_draws_pass_a_chi_square_test():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, 20).astype(np.float32)
    count = 20_000
    found = jitted(jnp.broadcast_to(logits, (count, 20)), rng.random(count, np.float32), temperature=1.0)
    assert chi_square(np.asarray(found), logits) < 43.8  # exceeded once in a thousand at 19 degrees of freedom


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_draws_equal_the_inverse_of_the_cumulative_distribution(temperature):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (2_000, 97)).astype(np.float32)
    uniforms = rng.random(2_000, np.float32)
    found = np.asarray(jitted(logits, uniforms, temperature=temperature))
    reached = np.cumsum(softmax(logits / temperature), axis=-1)
    expected = [np.searchsorted(row, u, side="right") for row, u in zip(reached, uniforms)]
    # A uniform within float32 rounding of a boundary may fall on either side of it.
    clear = np.abs(reached - uniforms[:, None]).min(axis=1) > 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], np.asarray(expected)[clear])


def test_any_leading_shape_and_one_row_at_a_time_give_the_same():
    rng = np.random.default_rng(3)
    logits, uniforms = rng.normal(0, 1, (3, 4, 31)).astype(np.float32), rng.random((3, 4), np.float32)
    together = np.asarray(jitted(logits, uniforms, temperature=1.0))
    alone = [[int(jitted(logits[i, j], uniforms[i, j], temperature=1.0)) for j in range(4)] for i in range(3)]
    np.testing.assert_array_equal(together, alone)


def test_temperature_zero_takes_the_largest():
    logits = np.random.default_rng(4).normal(size=(64, 33)).astype(np.float32)
    found = jitted(logits, np.full(64, 0.999, np.float32), temperature=0.0, top_k=5)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, logits.argmax(-1))


FILTERS = [
    {"top_k": 5},
    {"top_k": 1_000},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 0.9},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.2},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_equal_a_plain_reference(options):
    options = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    logits = np.random.default_rng(5).normal(0, 2, (40, 61)).astype(np.float32)
    uniforms = np.linspace(0, 1, 40, endpoint=False, dtype=np.float32)

    @jax.jit
    def both(logits):
        return filtered(logits / 0.8, **options), draw(logits, uniforms, temperature=0.8, **options)

    found, tokens = both(logits)
    expected = np.stack([filtered_law(row, 0.8, **options) for row in logits])
    np.testing.assert_array_equal(np.asarray(found) > MASKED / 2, expected > 0)
    np.testing.assert_allclose(softmax(np.asarray(found)), expected, rtol=2e-5, atol=1e-12)
    assert (expected[np.arange(40), tokens] > 0).all()


def test_the_ends_of_the_uniform_stay_on_tokens_with_weight():
    logits = np.full((3, 6), MASKED, np.float32)
    logits[:, 2], logits[:, 3] = 0.0, -1.0
    uniforms = np.array([0.0, np.nextafter(np.float32(1), np.float32(0)), 1.0], np.float32)
    np.testing.assert_array_equal(jitted(logits, uniforms, temperature=1.0), [2, 3, 3])


@pytest.mark.parametrize("vocab", [320, 4_096, 50_001])
def test_no_uniform_picks_a_token_without_weight(vocab):
    """Sums of a parallel scan are not monotonic: they change by a rounding across tokens that weigh nothing."""
    rng = np.random.default_rng(0)
    kept = rng.choice(vocab, 40, replace=False)
    logits = np.full(vocab, -np.inf, np.float32)
    logits[kept] = np.log(rng.random(40, np.float32))
    sums = np.asarray(jnp.cumsum(jnp.exp(logits - logits.max())))
    assert ((np.diff(sums) != 0) & np.isneginf(logits[1:])).any() and (np.diff(sums) < 0).any()
    boundaries = (np.unique(sums[sums > 0]) / sums[-1]).view(np.int32)
    around = np.concatenate([boundaries + step for step in range(-3, 4)]).view(np.float32)  # units in the last place
    uniforms = np.clip(np.append(around, [0, BELOW_ONE, 1]), 0, 1).astype(np.float32)
    found = np.asarray(jitted(np.broadcast_to(logits, (len(uniforms), vocab)), uniforms, temperature=1.0))
    assert np.isin(found, kept).all()
    assert np.isin(kept, found).mean() > 0.9
