"""Adam's moments as they are stored between updates: in float32, or in bfloat16 with stochastic rounding.

Neighbouring bfloat16 numbers are 0.4 to 0.8 % apart. With b2 = 0.999 the second moment falls by at most 0.1 % at an update, so
rounding to the nearest would keep it at its largest value, and the optimizer's steps would stay too small. Stochastic rounding
goes up or down at random, with the probabilities that keep the mean, so the average is right for any b1 and b2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cast(moments: optax.ScaleByAdamState, dtype: str) -> optax.ScaleByAdamState:
    """The moments cast to `dtype`, rounded to the nearest. Only for casts without loss: to float32, or of zeros."""
    mu, nu = jax.tree.map(lambda leaf: leaf.astype(dtype), (moments.mu, moments.nu))
    return moments._replace(mu=mu, nu=nu)


def store(moments: optax.ScaleByAdamState, dtype: str) -> optax.ScaleByAdamState:
    """Float32 moments rounded to `dtype`. The random numbers depend only on the number of updates: a resumed run has the same."""
    if dtype == "float32":
        return moments
    leaves, tree = jax.tree.flatten(moments.mu)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), moments.count), len(leaves))
    # One 32-bit random number serves both moments, 16 bits each: drawing is most of the cost.
    draws = jax.tree.unflatten(tree, [jax.random.bits(key, leaf.shape) for key, leaf in zip(keys, leaves)])
    mu = jax.tree.map(lambda leaf, draw: rounded(leaf, draw & 0xFFFF), moments.mu, draws)
    nu = jax.tree.map(lambda leaf, draw: rounded(leaf, draw >> 16), moments.nu, draws)
    return moments._replace(mu=mu, nu=nu)


def rounded(values: jax.Array, draw: jax.Array) -> jax.Array:
    """Round finite float32 values to bfloat16: to one of the two nearest numbers, at random, so that the mean is kept.

    `draw`: uint32 of the same shape, uniform over 0 to 2^16 - 1.
    """
    # A bfloat16 is the upper half of a float32. Adding the draw to the lower half carries into the upper half with the right
    # probability: lower half / 2^16.
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32) + draw
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)
