"""The package that needs both backends: what they must agree on, how closely, and the report that shows it.

Start with `check.py` (what a check is) and `runner.py`; the files in `rungs/` are the rungs of the ladder, from weights and
single operations to whole runs. A lower rung that fails explains those above it.
"""

import creason_jax  # noqa: F401  decides before JAX is imported what JAX shall start
