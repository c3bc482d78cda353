"""Adam's moments as they are stored between updates: float32, or bfloat16 rounded at random.

To the nearest bfloat16, of which two neighbours are 0.4 to 0.8 % apart, a second moment that may fall by 0.1 % an update
(b2 = 0.999) would never fall: it stays at the largest gradients it has seen, and steps stay small for good. Rounded up or
down by chance, each as often as it is near, the mean is right whatever b1 and b2 are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cast(moments: optax.ScaleByAdamState, dtype: str) -> optax.ScaleByAdamState:
    """The moments, leaves as the parameters, in `dtype`: to compute with them in float32, or where they are zeros."""
    mu, nu = jax.tree.map(lambda leaf: leaf.astype(dtype), (moments.mu, moments.nu))
    return moments._replace(mu=mu, nu=nu)


def store(moments: optax.ScaleByAdamState, dtype: str) -> optax.ScaleByAdamState:
    """Float32 moments in `dtype`; the draws depend on the number of updates alone, so a restored run draws the same."""
    if dtype == "float32":
        return moments
    leaves, tree = jax.tree.flatten(moments.mu)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), moments.count), len(leaves))
    # Half of each draw for each moment: drawing is most of what this costs.
    draws = jax.tree.unflatten(tree, [jax.random.bits(key, leaf.shape) for key, leaf in zip(keys, leaves)])
    mu = jax.tree.map(lambda leaf, draw: rounded(leaf, draw & 0xFFFF), moments.mu, draws)
    nu = jax.tree.map(lambda leaf, draw: rounded(leaf, draw >> 16), moments.nu, draws)
    return moments._replace(mu=mu, nu=nu)


def rounded(values: jax.Array, draw: jax.Array) -> jax.Array:
    """Finite float32 values as one of the two nearest bfloat16, each the likelier the nearer it is; shapes are equal.

    `draw` is uniform over the uint32 below 2^16.
    """
    # A bfloat16 is the upper half of a float32: a draw added to the lower half carries over as often as that half is large.
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32) + draw
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)
