"""Checksums of a state's values, made on the devices that hold them: the same on every mesh.

They are of the values and not of files, so whatever lies between a save and a restore is covered, and nothing is read twice.
`shared.storage.checkpoints` has the formula, which the PyTorch backend computes too. It reads stacked arrays layer by layer, so
they have a sum for each layer.
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

STACKED = "layers"  # a part of the path of what is stacked over layers


def checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Path of each array -> its dtype and its sums; every process must call it, and gets all of them."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array, name = jnp.asarray(leaf), path_name(path)
        kind, where = array.dtype.name, array.sharding
        if where.memory_kind == "pinned_host":
            array = jax.device_put(array, where.with_memory_kind("device"))  # devices compute on their own memory only
        # One after the other: CPUs of several processes may begin programs in different orders, and would wait for each other.
        found[name] = {"dtype": kind, "sums": np.asarray(_summed(array, name)).tolist()}
    return found


def path_name(path: tuple[Any, ...]) -> str:
    """`params.layers.q.kernel`: as Orbax names it, and the PyTorch backend."""
    return ".".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _summed(array: jax.Array, name: str) -> jax.Array:
    where = array.sharding
    if isinstance(where, jax.sharding.NamedSharding):
        where = jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec())
    return _program(STACKED in name.split("."), where)(array)


@functools.lru_cache
def _program(stacked: bool, where: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    """Sums `[layers]`, or `[1]` of what is not stacked, whole on every device."""

    def sums(array: jax.Array) -> jax.Array:
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        bits = bits if stacked else bits[None]
        bits ^= _places(bits.shape) * np.uint32(PLACE)
        for shift, factor in SCATTER:
            bits = (bits ^ (bits >> shift)) * np.uint32(factor)
        return bits.sum(axis=tuple(range(1, bits.ndim)), dtype=jnp.uint32)

    return jax.jit(sums, out_shardings=where)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Each place in a layer, counted from the layer's beginning, modulo 2**32."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return place
