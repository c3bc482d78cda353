"""Benchmarks of speed and memory, always as a ratio to a baseline that is measured in the same run."""

import creason_jax  # noqa: F401  sets JAX_PLATFORMS before JAX is imported
