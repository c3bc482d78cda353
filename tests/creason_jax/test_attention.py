from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creason_jax.model import decode_attention, group_attention
from shared.grpo import GroupLayout
from tests.support.attending import SIZE, Shape, full_mask, naive, random_arrays, random_case, random_groups

pytestmark = pytest.mark.slow

SHAPES = [
    Shape(shared=1, kv_heads=2, rows=2, layout=GroupLayout(prompt=6, group=2, completion=4)),
    Shape(shared=3, kv_heads=2, rows=2, layout=GroupLayout(prompt=3, group=3, completion=5)),
    Shape(shared=4, kv_heads=1, rows=3, layout=GroupLayout(prompt=5, group=1, completion=3)),
    Shape(shared=2, kv_heads=3, rows=2, layout=GroupLayout(prompt=7, group=0, completion=0)),
]


@jax.jit(static_argnames="layout")
def value_and_gradients(q, k, v, cotangent, valid, layout):
    out, back = jax.vjp(lambda q, k, v: group_attention(q, k, v, valid, layout), q, k, v)
    return out, *back(cotangent)


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(SHAPES))
    prompts = draw(st.lists(st.integers(1, shape.layout.prompt), min_size=shape.rows, max_size=shape.rows))
    one_row = st.lists(
        st.integers(0, shape.layout.completion), min_size=shape.layout.group, max_size=shape.layout.group
    )
    lengths = draw(st.lists(one_row, min_size=shape.rows, max_size=shape.rows))
    return shape, prompts, lengths, draw(st.integers(0, 2**16))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_values_and_gradients_equal_a_naive_attention_with_a_mask(case):
    shape, prompts, lengths, seed = case
    (q, k, v, cotangent), valid, mask = random_case(shape, prompts, lengths, seed)
    found = value_and_gradients(q, k, v, cotangent, valid, shape.layout)
    expected = naive(q, k, v, cotangent, mask)
    for name, ours, reference in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert np.isfinite(ours).all()
        where = valid if name == "out" else np.ones_like(valid)
        np.testing.assert_allclose(np.asarray(ours)[where], reference[where], rtol=1e-5, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_padding_are_finite_and_reach_no_gradient(shape):
    """A row without any token, as fills the last micro-batch, beside whole rows."""
    q, k, v, cotangent = random_arrays(shape, shape.layout.length, seed=3)
    valid = np.ones(q.shape[:2], bool)
    valid[-1] = False
    cotangent[-1] = 0
    out, *gradients = value_and_gradients(q, k, v, cotangent, valid, shape.layout)
    assert np.isfinite(out).all()
    for gradient in gradients:
        assert not gradient[-1].any() and np.isfinite(gradient).all() and np.abs(gradient[:-1]).max() > 0.1
    q[-1], k[-1], v[-1] = 7.0, -3.0, 1e20
    again = value_and_gradients(q, k, v, cotangent, valid, shape.layout)
    for ours, other in zip((out, *gradients), again, strict=True):
        np.testing.assert_array_equal(ours[:-1], other[:-1])


def test_a_completion_is_unmoved_by_its_siblings_and_moved_by_its_prompt():
    shape = SHAPES[1]
    layout = shape.layout
    batch = random_groups(shape, [3, 2], [[5, 3, 0], [1, 4, 5]])
    q, k, v, cotangent = random_arrays(shape, layout.length, seed=5)
    start, end = layout.prompt + layout.completion, layout.prompt + 2 * layout.completion  # the second completion

    def second(k, v):
        found = value_and_gradients(q, k, v, cotangent, batch.groups >= 0, layout)[0]
        return np.asarray(found[:, start : start + 3])

    others = np.r_[layout.prompt : start, end : layout.length]
    changed = [each.copy() for each in (k, v)]
    for each in changed:
        each[:, others] += 2
    np.testing.assert_array_equal(second(*changed), second(k, v))
    for each in changed:
        each[:, 0] += 2
    assert np.abs(second(*changed) - second(k, v)).max(axis=(0, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_decoding_equals_the_last_position_of_the_whole(shape):
    """Each sample's newest token over the caches of its slot, whatever lies behind their ends."""
    layout, rng = shape.layout, np.random.default_rng(11)
    prompt_lengths = rng.integers(1, layout.prompt + 1, shape.rows)
    own_lengths = rng.integers(1, layout.completion + 1, shape.rows)
    batch = random_groups(shape, list(prompt_lengths), [[n] * layout.group for n in own_lengths])
    q, k, v, cotangent = random_arrays(shape, layout.length, seed=7)
    whole, *_ = value_and_gradients(q, k, v, cotangent, batch.groups >= 0, layout)
    last = layout.prompt + np.arange(layout.group) * layout.completion + own_lengths[:, None] - 1  # [B, G]
    rows = np.arange(shape.rows)[:, None]
    caches = []
    for each in (k, v):
        each = np.where((batch.groups >= 0)[..., None, None], each, -1e4).transpose(0, 2, 1, 3)  # [B, K, T, N]
        own = each[:, :, layout.prompt :].reshape(shape.rows, shape.kv_heads, layout.group, layout.completion, SIZE)
        caches.append((each[:, :, : layout.prompt], own))
    (prompt_k, own_k), (prompt_v, own_v) = caches
    # The columns of a sample's cache may lie in any order: here turned by three. The newest token is not in it yet.
    there = np.roll(np.arange(layout.completion) < own_lengths[:, None] - 1, 3, axis=1)
    own_k, own_v = (np.roll(each, 3, axis=3) for each in (own_k, own_v))
    prompt = prompt_k.swapaxes(-1, -2), prompt_v, prompt_lengths
    newest = q[rows, last], k[rows, last], v[rows, last]
    found = jax.jit(decode_attention)(*newest, *prompt, own_k.swapaxes(-1, -2), own_v, there)
    np.testing.assert_allclose(found, whole[rows, last], rtol=0, atol=2e-6)
    expected, *_ = naive(q, k, v, cotangent, full_mask(batch.groups, batch.segments))
    np.testing.assert_allclose(found, expected[rows, last], rtol=0, atol=5e-6)


def test_no_array_is_quadratic_in_the_row():
    layout = GroupLayout(prompt=61, group=6, completion=23)
    shape = Shape(shared=2, kv_heads=2, rows=1, layout=layout)
    q, k, v, cotangent = random_arrays(shape, layout.length, seed=0)
    valid = np.ones((1, layout.length), bool)
    text = value_and_gradients.lower(q, k, v, cotangent, valid, layout).as_text()
    largest = max(int(np.prod([int(n) for n in dims.split("x")[:-1]])) for dims in shapes(text))
    assert largest < layout.length**2 * 4  # heads
    scores_over_prompt = 4 * layout.group * layout.completion * layout.prompt
    assert largest == max(scores_over_prompt, 4 * layout.prompt**2)


def shapes(text: str) -> list[str]:
    return [part.split(">")[0] for part in text.split("tensor<")[1:] if "x" in part.split(">")[0]]


def test_bfloat16_keeps_scores_in_float32():
    """Scores near 300, where bfloat16 numbers lie 2 apart, still tell two keys apart whose scores differ by 0.35."""
    layout = GroupLayout(prompt=2, group=1, completion=1)
    q = jnp.full((1, 3, 1, 8), 16, jnp.bfloat16)
    k = jnp.zeros((1, 3, 1, 8), jnp.bfloat16).at[0, 0, 0].set(6.5).at[0, 1, 0, :].set(6.5).at[0, 1, 0, 0].set(6.4375)
    v = jnp.zeros((1, 3, 1, 8), jnp.bfloat16).at[0, 0].set(1.0)
    out = jax.jit(lambda q, k, v: group_attention(q, k, v, jnp.ones((1, 3), bool), layout))(q, k, v)
    assert out.dtype == jnp.bfloat16
    scale = float(jnp.bfloat16(16 * 8**-0.5)) / 16
    gap = 16 * 0.0625 * scale
    np.testing.assert_allclose(np.asarray(out[0, 1:, 0], np.float32), 1 / (1 + np.exp(-gap)), rtol=5e-3)
