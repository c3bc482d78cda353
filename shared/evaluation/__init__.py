"""Questions answered by a model, and what is made of the answers: figures, comparisons, subgroups, baselines."""
