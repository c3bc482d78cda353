"""Checksums of a state's values, computed on the devices that hold them: the same on every mesh.

They cover values and not files. So they find damage at any point between save and restore, and no file is read twice.
`shared.storage.checkpoints` has the formula, which the PyTorch backend computes too. That backend reads arrays that are stacked
over layers layer by layer, so they have one sum for each layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared.storage.checkpoints import PLACE, SCATTER

STACKED = "layers"  # in the path of every array that is stacked over layers


def checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Path of each array -> its dtype and its sums. Every process must call it, and each gets all sums."""
    sums_by_name = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array, name = jnp.asarray(leaf), path_name(path)
        kind, where = array.dtype.name, array.sharding
        if where.memory_kind == "pinned_host":
            array = jax.device_put(array, where.with_memory_kind("device"))  # a device computes only on its own memory
        # Fetched one by one: CPU devices of several processes may start programs in different orders, and would deadlock.
        sums_by_name[name] = {"dtype": kind, "sums": np.asarray(_summed(array, name)).tolist()}
    return sums_by_name


def path_name(path: tuple[Any, ...]) -> str:
    """The name of an array, such as `params.layers.q.kernel`: the one that Orbax and the PyTorch backend use."""
    return ".".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _summed(array: jax.Array, name: str) -> jax.Array:
    where = array.sharding
    if isinstance(where, jax.sharding.NamedSharding):
        where = jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec())
    return _program(STACKED in name.split("."), where)(array)


@functools.lru_cache
def _program(stacked: bool, where: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    """The compiled function that computes sums `[layers]` of a stacked array, else `[1]`; the result is whole on every device."""

    def sums(array: jax.Array) -> jax.Array:
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        bits = bits if stacked else bits[None]
        bits ^= _positions(bits.shape) * np.uint32(PLACE)
        for shift, factor in SCATTER:
            bits = (bits ^ (bits >> shift)) * np.uint32(factor)
        return bits.sum(axis=tuple(range(1, bits.ndim)), dtype=jnp.uint32)

    return jax.jit(sums, out_shardings=where)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """The index of each value within its layer, flattened, modulo 2**32."""
    positions = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        positions += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return positions
