"""Read parameters back by name: SHA-256 digests of rows, to check that the engine holds the learner's weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from creason_jax.mesh import sharding
from shared.backend import Probe

LAYERS = "layers"


def readable(params: Any) -> dict[str, int]:
    """Number of rows of each parameter, by names such as `layers.3.q.kernel`. `params` has a list of layers."""
    return {name: leaf.shape[0] for name, leaf in _by_name(params).items()}


def digests(params: Any, probes: Sequence[Probe], dtype: Any, mesh: jax.sharding.Mesh) -> list[str]:
    """The SHA-256 digest of each probe's rows, cast to `dtype`. Every process must call it.

    The layers of `params` may be stacked or a list.
    """
    leaves = _by_name(params)
    return [hashlib.sha256(_rows(leaves, probe, jnp.dtype(dtype), mesh).tobytes()).hexdigest() for probe in probes]


def _rows(leaves: Mapping[str, Any], probe: Probe, dtype: jnp.dtype, mesh: jax.sharding.Mesh) -> np.ndarray:
    name = probe.name
    index: tuple[np.int32, ...] = ()
    if name not in leaves:  # the layers are stacked
        _, layer, rest = name.split(".", 2)
        name, index = f"{LAYERS}.{rest}", (np.int32(layer),)
    leaf = leaves[name]
    rows = range(leaf.shape[len(index)]) if probe.rows is None else probe.rows
    return np.asarray(jax.device_get(_taker(dtype, mesh)(leaf, (*index, np.asarray(rows, np.int32)))))


@functools.cache
def _taker(dtype: jnp.dtype, mesh: jax.sharding.Mesh) -> Any:
    """The compiled function that takes rows of an array, casts them, and returns them whole on every device."""
    return jax.jit(lambda leaf, index: leaf[index].astype(dtype), out_shardings=sharding.replicated(mesh))


def _by_name(params: Any) -> dict[str, Any]:
    return {
        ".".join(str(getattr(part, "key", getattr(part, "idx", ""))) for part in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
