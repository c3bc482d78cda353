"""The reference attention, one block of queries at a time: any platform, dtype and shape; memory is linear in the row length.

Only the scores of one block exist at a time, and the backward pass computes them again. Slower than a kernel: it also computes
the half of the prompt's scores that the causal mask hides.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from creason_jax.model.attention.reference import over_both, over_prompt
from shared.grpo import GroupLayout

BLOCK = 128  # queries of each head that are computed at a time


def group_attention(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, layout: GroupLayout) -> jax.Array:
    """See `choose.group_attention`."""
    batch, time, heads, size = q.shape
    kv_heads, shared = k.shape[2], heads // k.shape[2]
    prompt, group, length = layout.prompt, layout.group, layout.completion
    dtype = q.dtype
    q = q.reshape(batch, time, kv_heads, shared, size).transpose(0, 2, 3, 1, 4)  # [B, K, R, T, N]
    # Float32 outside the loop: there the gradients of all blocks are added.
    k, v = (x.transpose(0, 2, 1, 3).astype(jnp.float32) for x in (k, v))  # [B, K, T, N]
    prompt_k, prompt_v, prompt_valid = k[:, :, :prompt], v[:, :, :prompt], valid[:, :prompt]

    def in_prompt(start: jax.Array, block: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        visible = _causal(start, block.shape[3], prompt) & prompt_valid[:, None, None, None]
        return over_prompt(block, k.astype(dtype), v.astype(dtype), visible)

    out = _by_block(in_prompt, q[:, :, :, :prompt], prompt_k, prompt_v)
    if not group:
        return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)

    def of_completion(part: tuple[jax.Array, ...]) -> jax.Array:
        own_q, own_k, own_v, own_valid = part

        def in_completion(start: jax.Array, block: jax.Array, prompt_k: jax.Array, prompt_v: jax.Array) -> jax.Array:
            causal = _causal(start, block.shape[3], length) & own_valid[:, None, None, None, None]
            prompt_visible = prompt_valid[:, None, None, None, None]
            shared_k, shared_v = prompt_k.astype(dtype).swapaxes(-1, -2), prompt_v.astype(dtype)
            only_k, only_v = own_k[:, :, None].astype(dtype), own_v[:, :, None].astype(dtype)
            return over_both(block[:, :, :, None], shared_k, shared_v, prompt_visible, only_k, only_v, causal)[
                :, :, :, 0
            ]

        return _by_block(in_completion, own_q, prompt_k, prompt_v)

    own_q = jnp.moveaxis(q[:, :, :, prompt:].reshape(batch, kv_heads, shared, group, length, size), 3, 0)
    own_k, own_v = (jnp.moveaxis(x[:, :, prompt:].reshape(batch, kv_heads, group, length, size), 2, 0) for x in (k, v))
    own_valid = jnp.moveaxis(valid[:, prompt:].reshape(batch, group, length), 1, 0)
    completions = jnp.moveaxis(jax.lax.map(of_completion, (own_q, own_k, own_v, own_valid)), 0, 3)
    out = jnp.concatenate([out, completions.reshape(batch, kv_heads, shared, group * length, size)], axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


def _by_block(attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Call `attend(start, queries, k, v)` for each block of the queries `[B, K, R, Q, N]`; returns the shape of q."""
    count = q.shape[3]
    width = min(BLOCK, count)
    blocks = -(-count // width)
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, blocks * width - count), (0, 0)))
    parts = jnp.moveaxis(padded.reshape(*q.shape[:3], blocks, width, q.shape[-1]), 3, 0)
    step = jax.checkpoint(lambda part: attend(part[0], part[1], k, v))
    out = jax.lax.map(step, (jnp.arange(blocks) * width, parts))
    return jnp.moveaxis(out, 0, 3).reshape(padded.shape)[:, :, :, :count]


def _causal(start: jax.Array, queries: int, keys: int) -> jax.Array:
    """Causal mask `[queries, keys]`: true where the key is at or before the query. The first query is at `start`."""
    return start + jnp.arange(queries)[:, None] >= jnp.arange(keys)
