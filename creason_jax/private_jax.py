"""Names of JAX that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSION`; tests/test_private_names.py says when another version is installed, or when a name is gone.
"""

from __future__ import annotations

from typing import Any

from jax._src import distributed

VERSION = "0.10.2"


def processes() -> Any:
    """JAX's own record of the processes: the one way to its key-value store and its barriers without devices."""
    return distributed.global_state


def compiled_versions(program: Any) -> int:
    """How many versions of a function under `jax.jit` were compiled."""
    return program._cache_size()
