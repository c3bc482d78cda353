"""Checkpoints of the learner, in folders and buckets. Checkpoints of the PyTorch backend can be read too."""
