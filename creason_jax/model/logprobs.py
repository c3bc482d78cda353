"""Per-token log-probabilities without a `[tokens, vocabulary]` array."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_logprobs(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, *, chunk: int, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy (in nats) of its distribution, both float32 `[batch, time]`.

    hidden `[batch, time, model]`, head `[model, vocabulary]`, targets `[batch, time]`. Float32 logits exist for about `chunk`
    tokens at a time; the backward pass computes them again. The entropy has no gradient.
    """
    batch, time = targets.shape
    width = min(time, max(1, chunk // batch))
    pieces = -(-time // width)
    padding = pieces * width - time
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    head = head.astype(hidden.dtype)

    @jax.checkpoint
    def piece(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        hidden, targets = part
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = jnp.dot(flat, head, preferred_element_type=jnp.float32).reshape(*targets.shape, -1) / temperature
        return None, (target_logprobs(logits, targets), entropy(jax.lax.stop_gradient(logits)))

    # Chunks along time, not along rows: rows are split over devices, and a scan over a split axis moves data at every step.
    parts = (
        hidden.reshape(batch, pieces, width, -1).swapaxes(0, 1),
        targets.reshape(batch, pieces, width).swapaxes(0, 1),
    )
    _, (logprobs, entropies) = jax.lax.scan(piece, None, parts)

    def whole(values: jax.Array) -> jax.Array:
        return values.swapaxes(0, 1).reshape(batch, pieces * width)[:, :time]

    return whole(logprobs), whole(entropies)


def target_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-softmax of float32 logits `[..., vocabulary]` at the targets `[...]`."""
    # A comparison instead of a gather: with the vocabulary split over devices, a gather would first all-gather the logits.
    chosen = jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0).sum(-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of softmax(logits), `[..., vocabulary]` -> `[...]`."""
    total = jax.nn.logsumexp(logits, axis=-1)
    return total - (jax.nn.softmax(logits, axis=-1) * logits).sum(-1)
