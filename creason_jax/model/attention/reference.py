"""Plain attention over the group layout (training, prefill) and over the caches of a group (decoding).

Shape letters: B rows or slots, T time, P prompt length, G completions of a group, C completion length, Q queries of each
completion, H heads, K key-value heads, R = H / K heads for each key-value head, N head size.

Every product is a plain batched matrix product whose first dimensions are batch and heads. XLA's CPU backend takes twice as long
for an einsum whose contracted dimensions are not next to each other, and most of all for its gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from shared.grpo import GroupLayout

MASKED = -1e30  # finite: a row without any visible key must not give NaN


def group_attention(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, layout: GroupLayout) -> jax.Array:
    """Causal attention in which a completion sees its prompt and itself, never its siblings.

    q `[B, T, H, N]`, k and v `[B, T, K, N]`, valid `[B, T]` (False: padding); returns `[B, T, H, N]`. The prompt needs one
    `[P, P]` array of scores. The completions need one `[G * C, P]` array over the prompt's keys, and a `[C, C]` array each.
    So no `[T, T]` array exists, and the prompt's keys are read once for all completions.
    """
    batch, time, heads, size = q.shape
    kv_heads, shared = k.shape[2], heads // k.shape[2]
    prompt, group, length = layout.prompt, layout.group, layout.completion
    q = q.reshape(batch, time, kv_heads, shared, size).transpose(0, 2, 3, 1, 4)  # [B, K, R, T, N]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, N]
    prompt_k, prompt_v, prompt_valid = k[:, :, :prompt], v[:, :, :prompt], valid[:, :prompt]
    causal = jnp.tril(jnp.ones((prompt, prompt), bool)) & prompt_valid[:, None, None, None]
    out = over_prompt(q[:, :, :, :prompt], prompt_k, prompt_v, causal)
    if group:
        own_q = q[:, :, :, prompt:].reshape(batch, kv_heads, shared, group, length, size)
        own_k = k[:, :, prompt:].reshape(batch, kv_heads, group, length, size)
        own_v = v[:, :, prompt:].reshape(batch, kv_heads, group, length, size)
        own_valid = valid[:, prompt:].reshape(batch, 1, 1, group, 1, length)
        causal = jnp.tril(jnp.ones((length, length), bool)) & own_valid
        prompt_there = prompt_valid[:, None, None, None, None]
        completions = over_both(own_q, prompt_k.swapaxes(-1, -2), prompt_v, prompt_there, own_k, own_v, causal)
        out = jnp.concatenate([out, completions.reshape(batch, kv_heads, shared, group * length, size)], axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


def decode_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_length: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    own_there: jax.Array,
) -> jax.Array:
    """Attention of one new token of every sample: q `[B, G, H, N]`, its own k and v `[B, G, K, N]`; returns `[B, G, H, N]`.

    The token sees itself, the prompt of its slot and the earlier tokens of its sample. prompt_k `[B, K, N, P]` and prompt_v
    `[B, K, P, N]` are read once for all G samples (one matrix product in place of G vector products); prompt_length `[B]`
    is the number of valid keys in them. own_k `[B, K, G, N, C]` and own_v `[B, K, G, C, N]` are the samples' caches;
    own_there `[B, C]` is true at the columns that hold earlier tokens. The caches are only read here, so the caller can
    write the new token into them in place.
    """
    slots, group, heads, size = q.shape
    kv_heads, shared = k.shape[2], heads // k.shape[2]
    q = q.reshape(slots, group, kv_heads, shared, size).swapaxes(1, 2) * size**-0.5  # [B, K, G, R, N]
    k, v = (x.swapaxes(1, 2)[:, :, :, None] for x in (k, v))  # [B, K, G, 1, N]
    prompt_there = jnp.arange(prompt_k.shape[3]) < prompt_length[:, None, None, None, None]
    scores = _product(q.reshape(slots, kv_heads, group * shared, size), prompt_k)
    over_prompt = jnp.where(prompt_there, scores.reshape(*q.shape[:-1], -1), MASKED)
    over_own = jnp.where(own_there[:, None, None, None], _product(q, own_k), MASKED)
    over_itself = (q.astype(jnp.float32) * k.astype(jnp.float32)).sum(-1, keepdims=True)

    parts = (over_prompt, over_own, over_itself)
    top = functools.reduce(jnp.maximum, (part.max(-1, keepdims=True) for part in parts))
    weights = [jnp.exp(part - top) for part in parts]
    total = sum(part.sum(-1, keepdims=True) for part in weights)
    to_prompt, to_own, to_itself = (part.astype(q.dtype) for part in weights)
    from_prompt = _product(to_prompt.reshape(slots, kv_heads, group * shared, -1), prompt_v)
    out = from_prompt.reshape(q.shape) + _product(to_own, own_v) + to_itself.astype(jnp.float32) * v
    return (out / total).astype(q.dtype).swapaxes(1, 2).reshape(slots, group, heads, size)


def over_prompt(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention over a prompt: q `[B, K, R, Q, N]`, k and v `[B, K, P, N]`; returns the shape of q.

    `visible` broadcasts to `[B, K, R, Q, P]`.
    """
    batch, kv_heads, shared, queries, size = q.shape
    scores = _product(q.reshape(batch, kv_heads, -1, size) * size**-0.5, k.swapaxes(-1, -2))
    scores = jnp.where(visible, scores.reshape(batch, kv_heads, shared, queries, -1), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return (weights.reshape(batch, kv_heads, shared * queries, -1) @ v).reshape(q.shape)


def over_both(
    q: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_visible: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    own_visible: jax.Array,
) -> jax.Array:
    """Attention of completions over their shared prompt and over themselves; q and the result are `[B, K, R, G, Q, N]`.

    prompt_k `[B, K, N, P]`, prompt_v `[B, K, P, N]`, own_k and own_v `[B, K, G, C, N]`. One softmax over both score arrays
    without joining them: joining would copy the larger one.
    """
    batch, kv_heads, shared, group, queries, size = q.shape
    q = q * size**-0.5
    scores = _product(q.reshape(batch, kv_heads, -1, size), prompt_k)
    over_prompt = jnp.where(prompt_visible, scores.reshape(*q.shape[:-1], -1), MASKED)
    by_sample = (batch, kv_heads, group, shared * queries)
    scores = _product(q.swapaxes(2, 3).reshape(*by_sample, size), own_k.swapaxes(-1, -2))
    scores = scores.reshape(batch, kv_heads, group, shared, queries, -1).swapaxes(2, 3)
    over_own = jnp.where(own_visible, scores, MASKED)

    top = jax.lax.stop_gradient(jnp.maximum(over_prompt.max(-1), over_own.max(-1)))[..., None]
    prompt_weights, own_weights = jnp.exp(over_prompt - top), jnp.exp(over_own - top)
    total = prompt_weights.sum(-1, keepdims=True) + own_weights.sum(-1, keepdims=True)
    from_prompt = _product(prompt_weights.astype(q.dtype).reshape(batch, kv_heads, -1, prompt_v.shape[2]), prompt_v)
    from_own = _product(own_weights.astype(q.dtype).swapaxes(2, 3).reshape(*by_sample, -1), own_v)
    from_own = from_own.reshape(batch, kv_heads, group, shared, queries, size).swapaxes(2, 3)
    return ((from_prompt.reshape(q.shape) + from_own) / total).astype(q.dtype)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
