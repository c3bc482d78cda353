"""The one place that chooses a backend: nothing of the other one is imported."""

from __future__ import annotations

import importlib.util

from shared.backend import Backend
from shared.config import RunConfig
from shared.errors import InputError


def make_backend(name: str, config: RunConfig) -> Backend:
    """Build backend `name` for `config`. Raises InputError where its packages are not installed."""
    if name != "jax":
        raise InputError(f"--backend={name}: this version has the jax backend only; use --backend=jax")
    if importlib.util.find_spec("jax") is None:
        raise InputError('the jax backend needs jax: install the project with `pip install -e ".[jax]"`')
    from creason_jax.backend import Backend as JaxBackend

    return JaxBackend(config)
