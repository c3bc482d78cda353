"""The one place that chooses a backend: nothing of the other one is imported."""

from __future__ import annotations

import importlib.util

from shared.backend import Backend
from shared.config import RunConfig
from shared.errors import InputError


def make_backend(name: str, config: RunConfig) -> Backend:
    """Build backend `name` for `config`. Raises InputError where its packages are not installed."""
    needed = {"jax": ("jax", "flax"), "torch": ("torch", "deepspeed")}[name]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"--backend={name}: {' and '.join(missing)} not installed; `make env BACKEND={name}` installs what it needs"
        )
    if name == "torch":
        from creason_torch.backend import Backend as TorchBackend

        return TorchBackend(config)
    from creason_jax.backend import Backend as JaxBackend

    return JaxBackend(config)
