"""Checkpoints of the learner, in folders and buckets; those of the other backend are read too."""
