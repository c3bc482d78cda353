"""The only place that imports both backends: what they must agree on, how closely, and the report that shows it.

Start with `check.py` (what a check is) and `runner.py`; each file in `rungs/` is one rung of the ladder, from weights and
single operations to whole runs. A lower rung that fails explains those above it.
"""

import creason_jax  # noqa: F401  decides before JAX is imported what JAX shall start
