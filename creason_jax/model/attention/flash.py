"""cuDNN's flash attention on an NVIDIA GPU, through `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from shared.grpo import GroupLayout

LARGEST_HEAD = 128


def refusal(dtype: jnp.dtype, size: int, layout: GroupLayout) -> str | None:
    """Why cuDNN cannot compute this, or None where it can. `size`: of a head; `layout`: of a row."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"computes no {jnp.dtype(dtype).name}"
    if size > LARGEST_HEAD or size % 8:
        return f"needs heads of a multiple of 8 up to {LARGEST_HEAD}, not {size}"
    if layout.group and (layout.completion % 2 or layout.prompt % 2):
        return "needs even lengths with a mask"
    return None


def group_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    layout: GroupLayout,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """See `choose.group_attention`. `implementation="xla"` computes the same on any platform, for the tests.

    One call computes the prompt, with cuDNN's causal mask and each prompt's length. One call for each completion attends to
    the prompt's and its own keys, under a mask `[B, 1, C, P + C]` that all heads and completions share: cuDNN has no causal
    mask that begins after a padded prompt.
    """
    batch, _, heads, size = q.shape
    prompt, group, length = layout.prompt, layout.group, layout.completion
    prompt_valid = valid[:, :prompt]
    # A row without any token still attends to one key: a softmax over no key would give NaN.
    prompt_lengths = jnp.maximum(prompt_valid.sum(axis=1, dtype=jnp.int32), 1)
    out = jax.nn.dot_product_attention(
        q[:, :prompt],
        k[:, :prompt],
        v[:, :prompt],
        is_causal=True,
        key_value_seq_lengths=prompt_lengths,
        query_seq_lengths=jnp.full(batch, prompt, jnp.int32),
        implementation=implementation,
    )
    if not group:
        return out
    # The valid tokens of a completion come first, so the causal mask alone hides its padding from them.
    causal = jnp.tril(jnp.ones((length, length), bool))
    over_prompt = jnp.broadcast_to(prompt_valid[:, None, None], (batch, 1, length, prompt))
    mask = jnp.concatenate([over_prompt, jnp.broadcast_to(causal, (batch, 1, length, length))], axis=-1)

    def of_completion(part: tuple[jax.Array, ...]) -> jax.Array:
        own_q, own_k, own_v = part
        keys = jnp.concatenate([k[:, :prompt], own_k], axis=1)
        values = jnp.concatenate([v[:, :prompt], own_v], axis=1)
        return jax.nn.dot_product_attention(own_q, keys, values, mask=mask, implementation=implementation)

    def parts(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x[:, prompt:].reshape(batch, group, length, -1, size), 1, 0)

    completions = jax.lax.map(of_completion, (parts(q), parts(k), parts(v)))
    own = jnp.moveaxis(completions, 0, 1).reshape(batch, group * length, heads, size)
    return jnp.concatenate([out, own], axis=1)
