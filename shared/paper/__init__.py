"""The original's question generator, draw by draw (spec: registry, b to d): what `--compat=paper` and `rng="paper"` run.

It keeps the original's faults, because its published question sets depend on them: one global state of two random
generators runs through all rows, options are not refilled, a label keeps its decimals, and values carry the types that
a round trip through CSV gave them. Nothing else in this project should be built on it: `shared.tasks` has the mended
rules.
"""
