"""A learner on a small Phi-3 with any mesh, random batches for it, and trees as flat dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from creason_jax.learner.learner import Learner
from creason_jax.mesh import sharding
from tests.support.groups import LAYOUT, MODEL, OPTIMIZER, VOCABULARY, random_batch
from tests.support.tiny import run_config

__all__ = [
    "LAYOUT",
    "MODEL",
    "OPTIMIZER",
    "VOCABULARY",
    "distance",
    "flat",
    "gradients",
    "make_learner",
    "on_host",
    "put_back",
    "random_batch",
]


def make_learner(
    model: Path,
    *,
    mesh: tuple[int, int, int] = (1, 1, 1),
    steps: int = 10,
    reference: bool = True,
    optimizer: dict[str, Any] | None = None,
    learner: dict[str, Any] | None = None,
    jax_options: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> Learner:
    """A float32 learner on a mesh (data, fsdp, tensor) of the first devices; `learner` and `jax_options` are fields of
    those sections, `sections` as in `run_config`."""
    axes = dict(zip(("mesh_data", "mesh_fsdp", "mesh_tensor"), mesh, strict=True))
    config = run_config(
        optimizer=OPTIMIZER | (optimizer or {}), learner=learner or {}, jax=axes | (jax_options or {}), **sections
    )
    built = sharding.make_mesh(config.jax, jax.devices()[: int(np.prod(mesh))])
    return Learner(config, model, built, optimizer=config.optimizer, steps=steps, reference=reference)


def on_host(tree: Any) -> Any:
    """A copy of the tree's values that outlives a donation of its arrays."""
    return jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(tree))


def put_back(learner: Learner, state: Any) -> None:
    """Give a learner a state from `on_host`, and the step in it."""
    learner.state = jax.tree.map(lambda old, new: jax.device_put(new, old.sharding), learner.state, state)
    learner.step = int(state.step)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a tree on the host, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(on_host(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def gradients(learner: Learner) -> dict[str, np.ndarray]:
    """The clipped gradients of a learner's first update: Adam's first moment over 1 - b1."""
    assert int(learner.state.step) == 1
    return {path: mean / np.float32(1 - learner.optimizer.b1) for path, mean in flat(learner.state.moments.mu).items()}


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative L2 distance of a leaf from what is expected."""
    assert found.keys() == expected.keys()
    return max(_relative(found[path].astype(np.float64), expected[path].astype(np.float64)) for path in expected)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
