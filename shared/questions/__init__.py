"""A question, how a model reads it, how its answer is rewarded, and whether it can be answered by a shortcut."""
