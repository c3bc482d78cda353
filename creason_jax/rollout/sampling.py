"""Sampling of tokens on the device, from uniform random numbers made on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from creason_jax.model.attention import MASKED
from shared.backend import BELOW_ONE

BLOCK = 128  # tokens of the vocabulary in one block of the two-level cumulative sum


def draw(
    logits: jax.Array,
    uniforms: jax.Array,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Token ids `[...]` drawn from float32 logits `[..., V]` by inverse transform sampling.

    `uniforms` `[...]` holds one number in [0, 1) for each token, so the draw does not depend on the backend or the slot.
    Temperature 0 takes the largest logit. The filters act in the order top-k, top-p, min-p.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filtered(logits / temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    # Two levels: first the block that the number falls into, then the token in that block. One cumulative sum over the whole
    # vocabulary would take as long as the rest of the draw, and would all-gather a vocabulary that is split over devices.
    blocks = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % BLOCK)])
    blocks = blocks.reshape(*weights.shape[:-1], -1, BLOCK)
    sums = blocks.sum(axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    threshold = jnp.minimum(uniforms, BELOW_ONE)[..., None] * ends[..., -1:]
    block = _first_beyond(ends, sums, threshold)
    is_block = jnp.arange(sums.shape[-1]) == block[..., None]
    inside = jnp.where(is_block[..., None], blocks, 0.0).sum(axis=-2)
    before = jnp.where(is_block, ends - sums, 0.0).sum(axis=-1, keepdims=True)
    return block * BLOCK + _first_beyond(jnp.cumsum(inside, axis=-1), inside, threshold - before)


def _first_beyond(cumulative: jax.Array, weights: jax.Array, threshold: jax.Array) -> jax.Array:
    """The first index with a weight above 0 whose cumulative sum exceeds the threshold `[..., 1]`; if none does, the last one."""
    # A parallel scan rounds each sum in its own way, so sums may differ even where a weight is 0. Such an index is never drawn.
    cumulative = jnp.where(weights > 0, cumulative, -jnp.inf)
    threshold = jnp.minimum(threshold, BELOW_ONE * cumulative.max(axis=-1, keepdims=True))
    indices = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    return jnp.where(cumulative > threshold, indices, indices[-1]).min(axis=-1)


def filtered(logits: jax.Array, *, top_k: int, top_p: float, min_p: float) -> jax.Array:
    """Logits `[..., V]` in which the tokens that the filters exclude are masked."""
    if top_k:
        smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < smallest, MASKED, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        weights = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(weights, axis=-1) - weights
        smallest = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, MASKED, logits)
    if min_p > 0.0:
        weights = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(weights < min_p * weights.max(axis=-1, keepdims=True), MASKED, logits)
    return logits
