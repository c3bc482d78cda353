"""The Flax backend: GRPO on TPU pods (and GPUs, and CPUs) under `jax.jit` with named shardings."""
