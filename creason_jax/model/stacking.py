"""Layers as one tree with a leading layer axis (training, prefill), or as a list of trees (decoding)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def stack_layers(layers: list[Any]) -> Any:
    """Stack a list of trees of equal shapes into one tree whose leaves have a leading layer axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def unstack_layers(stacked: Any) -> list[Any]:
    """The inverse of `stack_layers`."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    return [jax.tree.map(lambda leaf, index=index: leaf[index], stacked) for index in range(count)]
