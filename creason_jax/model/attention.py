"""Attention over the group layout (training, prefill) and over the caches of a group (decoding).

Shape letters: B rows, T time, P prompt, G completions of a group, C completion length, H heads, K key-value heads,
R = H / K heads for each key-value head, N head size, S slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shared.grpo import GroupLayout

MASKED = -1e30  # finite, so that a row without any key gives no NaN


def group_attention(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, layout: GroupLayout) -> jax.Array:
    """Causal attention in which a completion sees its prompt and itself, never its siblings.

    q `[B, T, H, N]`, k and v `[B, T, K, N]`, valid `[B, T]` (False: padding); returns `[B, T, H, N]`. The prompt attends
    by one `[P, P]` square, the completions by a rectangle over the prompt's keys and a `[C, C]` square each, so no
    `[T, T]` array exists and the prompt's keys are read once for all completions.
    """
    batch, _, heads, size = q.shape
    kv_heads = k.shape[2]
    prompt, group, length = layout.prompt, layout.group, layout.completion
    q = q.reshape(batch, -1, kv_heads, heads // kv_heads, size) * size**-0.5

    prompt_k, prompt_v, prompt_valid = k[:, :prompt], v[:, :prompt], valid[:, :prompt]
    scores = jnp.einsum("bqkrn,bskn->bkrqs", q[:, :prompt], prompt_k, preferred_element_type=jnp.float32)
    visible = jnp.tril(jnp.ones((prompt, prompt), bool)) & prompt_valid[:, None, None, None, :]
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1).astype(v.dtype)
    prompt_out = jnp.einsum("bkrqs,bskn->bqkrn", weights, prompt_v).reshape(batch, prompt, heads, size)
    if not group:
        return prompt_out

    def completions(x: jax.Array) -> jax.Array:
        return x[:, prompt:].reshape(batch, group, length, *x.shape[2:])

    own_q, own_k, own_v, own_valid = completions(q), completions(k), completions(v), completions(valid)
    over_prompt = jnp.einsum("bgckrn,bskn->bkrgcs", own_q, prompt_k, preferred_element_type=jnp.float32)
    over_prompt = jnp.where(prompt_valid[:, None, None, None, None, :], over_prompt, MASKED)
    over_own = jnp.einsum("bgckrn,bgdkn->bkrgcd", own_q, own_k, preferred_element_type=jnp.float32)
    own_visible = jnp.tril(jnp.ones((length, length), bool)) & own_valid[:, None, None, :, None, :]
    over_own = jnp.where(own_visible, over_own, MASKED)
    weights = jax.nn.softmax(jnp.concatenate([over_prompt, over_own], axis=-1), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkrgcs,bskn->bgckrn", weights[..., :prompt], prompt_v)
    out = out + jnp.einsum("bkrgcd,bgdkn->bgckrn", weights[..., prompt:], own_v)
    return jnp.concatenate([prompt_out, out.reshape(batch, group * length, heads, size)], axis=1)


def decode_attention(
    q: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    prompt_length: jax.Array,
    own_k: jax.Array,
    own_v: jax.Array,
    own_length: jax.Array,
) -> jax.Array:
    """One token of every sample: q `[S, G, H, N]` over its slot's prompt and its own cache; returns `[S, G, H, N]`.

    prompt_k, prompt_v `[S, P, K, N]` are read once for all G samples (a matrix product in place of G vector products);
    own_k, own_v `[S, G, C, K, N]`; prompt_length and own_length `[S]` count the keys that are there.
    """
    slots, group, heads, size = q.shape
    prompt, kv_heads = prompt_k.shape[1:3]
    q = q.reshape(slots, group, kv_heads, heads // kv_heads, size) * size**-0.5
    over_prompt = jnp.einsum("sgkrn,spkn->skrgp", q, prompt_k, preferred_element_type=jnp.float32)
    there = jnp.arange(prompt) < prompt_length[:, None]
    over_prompt = jnp.where(there[:, None, None, None, :], over_prompt, MASKED)
    over_own = jnp.einsum("sgkrn,sgckn->skrgc", q, own_k, preferred_element_type=jnp.float32)
    there = jnp.arange(own_k.shape[2]) < own_length[:, None]
    over_own = jnp.where(there[:, None, None, None, :], over_own, MASKED)
    weights = jax.nn.softmax(jnp.concatenate([over_prompt, over_own], axis=-1), axis=-1).astype(own_v.dtype)
    out = jnp.einsum("skrgp,spkn->sgkrn", weights[..., :prompt], prompt_v)
    out = out + jnp.einsum("skrgc,sgckn->sgkrn", weights[..., prompt:], own_v)
    return out.reshape(slots, group, heads, size)
