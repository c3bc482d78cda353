from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from creason_jax.rollout import sampling as jax_sampling
from creason_torch.rollout.sampling import draw, filtered
from shared.backend import BELOW_ONE
from tests.support.sampling_laws import assert_frequencies, chi_square, filtered_law, softmax

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


def drawn(logits: np.ndarray, uniforms: np.ndarray | float, **options) -> np.ndarray:
    return draw(torch.tensor(logits), torch.tensor(uniforms, dtype=torch.float32), **options).numpy()


def clear_of_boundaries(law: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """A uniform within float32 rounding of a boundary may fall on either side of it; False for those."""
    reached = np.cumsum(law, axis=-1)
    return np.abs(reached - uniforms[..., None]).min(axis=-1) > 1e-6


def test_draws_follow_the_softmax():
    """One evenly spaced grid of uniforms: each token as often as its probability, to one draw at each of its ends."""
    logits = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)
    count = 40_000
    grid = (np.arange(count, dtype=np.float32) + 0.5) / count
    found = drawn(np.broadcast_to(logits, (count, 50)), grid, temperature=0.7)
    assert_frequencies(np.asarray(found), logits, 0.7)


def test_random_draws_pass_a_chi_square_test():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, 20).astype(np.float32)
    count = 20_000
    found = drawn(np.broadcast_to(logits, (count, 20)), rng.random(count, np.float32), temperature=1.0)
    assert chi_square(np.asarray(found), logits) < 43.8  # exceeded once in a thousand at 19 degrees of freedom


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_draws_equal_the_inverse_of_the_cumulative_distribution(temperature):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (2_000, 97)).astype(np.float32)
    uniforms = rng.random(2_000, np.float32)
    found = drawn(logits, uniforms, temperature=temperature)
    law = softmax(logits / temperature)
    expected = [np.searchsorted(row, u, side="right") for row, u in zip(np.cumsum(law, axis=-1), uniforms)]
    clear = clear_of_boundaries(law, uniforms)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], np.asarray(expected)[clear])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, *FILTERS], ids=str)
def test_draws_equal_those_of_jax(options):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (3, 400, 83)).astype(np.float32)
    uniforms = rng.random((3, 400), np.float32)
    found = drawn(logits, uniforms, temperature=0.9, **options)
    jitted = jax.jit(jax_sampling.draw, static_argnames=("temperature", "top_k", "top_p", "min_p"))
    expected = jitted(logits, uniforms, temperature=0.9, **options)
    settings = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    law = np.stack([filtered_law(row, 0.9, **settings) for row in logits.reshape(-1, 83)]).reshape(logits.shape)
    clear = clear_of_boundaries(law, uniforms)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], np.asarray(expected)[clear])


def test_any_leading_shape_and_one_row_at_a_time_give_the_same():
    rng = np.random.default_rng(4)
    logits, uniforms = rng.normal(0, 1, (3, 4, 31)).astype(np.float32), rng.random((3, 4), np.float32)
    together = drawn(logits, uniforms, temperature=1.0)
    alone = [[int(drawn(logits[i, j], uniforms[i, j], temperature=1.0)) for j in range(4)] for i in range(3)]
    np.testing.assert_array_equal(together, alone)


def test_temperature_zero_takes_the_largest():
    logits = np.random.default_rng(5).normal(size=(64, 33)).astype(np.float32)
    found = drawn(logits, np.full(64, 0.999, np.float32), temperature=0.0, top_k=5)
    np.testing.assert_array_equal(found, logits.argmax(-1))


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_equal_a_plain_reference(options):
    options = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    logits = np.random.default_rng(6).normal(0, 2, (40, 61)).astype(np.float32)
    uniforms = np.linspace(0, 1, 40, endpoint=False, dtype=np.float32)
    found = filtered(torch.tensor(logits) / 0.8, **options)
    tokens = drawn(logits, uniforms, temperature=0.8, **options)
    expected = np.stack([filtered_law(row, 0.8, **options) for row in logits])
    np.testing.assert_array_equal(np.isfinite(found), expected > 0)
    np.testing.assert_allclose(softmax(found.numpy()), expected, rtol=2e-5, atol=1e-12)
    assert (expected[np.arange(40), tokens] > 0).all()


def test_the_ends_of_the_uniform_stay_on_tokens_with_weight():
    logits = np.full((3, 6), -np.inf, np.float32)
    logits[:, 2], logits[:, 3] = 0.0, -1.0
    uniforms = np.array([0.0, np.nextafter(np.float32(1), np.float32(0)), 1.0], np.float32)
    np.testing.assert_array_equal(drawn(logits, uniforms, temperature=1.0), [2, 3, 3])


@pytest.mark.parametrize("vocab", [320, 50_001])
def test_no_uniform_picks_a_token_without_weight(vocab):
    rng = np.random.default_rng(0)
    kept = rng.choice(vocab, 40, replace=False)
    logits = np.full(vocab, -np.inf, np.float32)
    logits[kept] = np.log(rng.random(40, np.float32))
    sums = torch.exp(torch.tensor(logits - logits.max())).cumsum(-1).numpy()
    boundaries = (np.unique(sums[sums > 0]) / sums[-1]).view(np.int32)
    around = np.concatenate([boundaries + step for step in range(-3, 4)]).view(np.float32)  # units in the last place
    uniforms = np.clip(np.append(around, [0, BELOW_ONE, 1]), 0, 1).astype(np.float32)
    found = drawn(np.broadcast_to(logits, (len(uniforms), vocab)), uniforms, temperature=1.0)
    assert np.isin(found, kept).all()
    assert np.isin(kept, found).mean() > 0.9


@pytest.mark.slow
def test_sums_that_fall_by_a_rounding_pick_no_token_without_weight(monkeypatch):
    """On a GPU sums come from a parallel scan: they are not monotonic, and change where a weight is zero."""
    logits = torch.full((1, 8), -torch.inf)
    logits[:, [1, 4]] = 0.0
    wobble = torch.tensor([[1e-7, 1.0, 1.0 + 2e-7, 1.0 - 1e-7, 2.0, 2.0 - 2e-7, 2.0 + 2e-7, 2.0]])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: wobble.expand(self.shape))
    for uniform in np.append(np.linspace(0, 1, 40), [0.5 - 1e-7, 0.5, 0.5 + 1e-7]):
        assert draw(logits, torch.tensor([uniform], dtype=torch.float32), temperature=1.0).item() in (1, 4)
