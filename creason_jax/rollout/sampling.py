"""Drawing tokens on the device, from uniform numbers made on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from creason_jax.model.attention import MASKED
from shared.backend import BELOW_ONE

BLOCK = 128  # tokens of the vocabulary that are summed before sums are added up


def draw(
    logits: jax.Array,
    uniforms: jax.Array,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Token ids `[...]` from float32 logits `[..., V]` by the inverse of the cumulative distribution.

    One number for each token, `uniforms` `[...]`, so the draw is the same on any backend and in any slot. Temperature 0 takes
    the largest logit. Filters act in the order top-k, top-p, min-p.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filtered(logits / temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    # The vocabulary by blocks: first the block that the number falls into, then the token in it. One long cumulative sum
    # takes as long as everything else of the draw, and over a vocabulary split over devices it gathers all weights.
    blocks = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % BLOCK)])
    blocks = blocks.reshape(*weights.shape[:-1], -1, BLOCK)
    sums = blocks.sum(axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    threshold = jnp.minimum(uniforms, BELOW_ONE)[..., None] * ends[..., -1:]
    block = _first_beyond(ends, sums, threshold)
    there = jnp.arange(sums.shape[-1]) == block[..., None]
    inside = jnp.where(there[..., None], blocks, 0.0).sum(axis=-2)
    before = jnp.where(there, ends - sums, 0.0).sum(axis=-1, keepdims=True)
    return block * BLOCK + _first_beyond(jnp.cumsum(inside, axis=-1), inside, threshold - before)


def _first_beyond(cumulative: jax.Array, weights: jax.Array, threshold: jax.Array) -> jax.Array:
    """The first index with weight whose cumulative sum is beyond the threshold `[..., 1]`; the last with weight, if none is."""
    # Sums of a parallel scan change by a rounding, up or down, even where a weight is zero: no such index may be drawn.
    cumulative = jnp.where(weights > 0, cumulative, -jnp.inf)
    threshold = jnp.minimum(threshold, BELOW_ONE * cumulative.max(axis=-1, keepdims=True))
    indices = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    return jnp.where(cumulative > threshold, indices, indices[-1]).min(axis=-1)


def filtered(logits: jax.Array, *, top_k: int, top_p: float, min_p: float) -> jax.Array:
    """Logits with the tokens that the filters take away masked."""
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
