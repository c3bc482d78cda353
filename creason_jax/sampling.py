"""Drawing tokens on the device, from uniform numbers made on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from creason_jax.model.attention import MASKED

BELOW_ONE = 1.0 - 2.0**-20  # a draw at the very top must still fall on a token with weight


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
    # Sums of a parallel scan change by a rounding, up or down, even where a weight is zero: no such token may be drawn.
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    threshold = jnp.minimum(uniforms, BELOW_ONE)[..., None] * cumulative.max(axis=-1, keepdims=True)
    tokens = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.where(cumulative > threshold, tokens, tokens[-1]).min(axis=-1)


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
