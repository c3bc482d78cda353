"""Checkpoints of the learner; those of the other backend are read too."""
