"""Speed and memory, always as a ratio to a baseline that the same run measures."""

import creason_jax  # noqa: F401  decides before JAX is imported what JAX shall start
