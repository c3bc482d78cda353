"""Checkpoints of the learner. Checkpoints of the JAX backend can be read too."""
