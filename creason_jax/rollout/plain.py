"""Log-probabilities from one forward pass without caches over a model directory, layer by layer: the check of an engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from creason_jax import distributed
from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig, StoredParams, group_attention, head, layer_forward, normed, rotary
from creason_jax.model.logprobs import target_logprobs
from creason_jax.rollout.engine import Engine, padded
from shared.backend import Completion, scoring_temperature
from shared.grpo import GroupLayout


def completion_logprobs(
    engine: Engine, folder: Path, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
) -> list[np.ndarray]:
    """See `shared.backend.Backend.plain_logprobs`. Only one layer's weights are on the devices at a time."""
    model, mesh, dtype = engine.model, engine.mesh, engine.dtype
    temperature = scoring_temperature(engine.config.grpo, engine.config.rollout.temperature)
    if not completions:
        return []
    texts = [
        np.concatenate([prompt, completion.tokens]) for prompt, completion in zip(prompts, completions, strict=True)
    ]
    ways = sharding.batch_ways(mesh)
    width = -(-len(texts) // ways) * ways
    tokens, lengths = padded(dict(enumerate(texts)), width, engine.config.longest_sequence)
    # The token at t is scored by the state at t - 1.
    states, targets = np.zeros((2, width, max(len(completion.tokens) for completion in completions)), np.int32)
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        count = len(completion.tokens)
        states[row, :count], targets[row, :count] = len(prompt) - 1 + np.arange(count), completion.tokens
    rows = sharding.batch_sharding(mesh)
    placed = [distributed.place(values, rows) for values in (tokens, lengths, states, targets)]
    with StoredParams(folder, model, engine.shardings) as stored:
        x = _embedded(stored.part("embed"), placed[0], dtype)
        for layer in range(model.num_hidden_layers):
            x = _through_layer(stored.part("layers", layer), x, placed[1], model, mesh)
        last = "embed" if model.tie_word_embeddings else "head"
        scored = _scored({last: stored.part(last)}, stored.part("norm"), x, *placed[2:], model, temperature)
    return [row[: len(completion.tokens)] for row, completion in zip(distributed.fetch(scored), completions)]


@functools.partial(jax.jit, static_argnums=2)
def _embedded(embed: Any, tokens: jax.Array, dtype: Any) -> jax.Array:
    return jnp.take(embed["kernel"].astype(dtype), tokens, axis=0)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _through_layer(layer: Any, x: jax.Array, lengths: jax.Array, model: DecoderConfig, mesh: Mesh) -> jax.Array:
    """Hidden states `[rows, time, model]` after one layer; `lengths` `[rows]` counts the valid tokens of each row."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    valid, layout = positions < lengths[:, None], GroupLayout(prompt=x.shape[1], group=0, completion=0)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return group_attention(q, k, v, valid, layout, mesh=mesh), None

    cast = jax.tree.map(lambda leaf: leaf.astype(x.dtype), layer)
    return layer_forward(cast, model, x, rotary(positions, model, x.dtype), attend)[0]


@functools.partial(jax.jit, static_argnums=(5, 6))
def _scored(
    last: Any, norm: Any, x: jax.Array, states: jax.Array, targets: jax.Array, model: DecoderConfig, temperature: float
) -> jax.Array:
    """Float32 log-probabilities of `targets` `[rows, tokens]`; `states`, same shape: positions of the states that score them."""
    cast = jax.tree.map(lambda leaf: leaf.astype(x.dtype), (last, norm))
    hidden = jnp.take_along_axis(x, states[:, :, None], axis=1)
    hidden = normed(cast[1], model, hidden)
    logits = jnp.einsum("btd,dv->btv", hidden, head(cast[0]), preferred_element_type=jnp.float32)
    return target_logprobs(logits / temperature, targets)
