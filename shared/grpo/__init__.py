"""The GRPO contract: groups of completions as arrays, advantages, and the float64 reference objective.

NumPy only. Both backends build their batches here and must match the objective here (spec: grpo).
"""

from shared.grpo.advantages import advantages, completion_masks, uniform_groups
from shared.grpo.batch import (
    ARRAYS,
    OPTIONAL_ARRAYS,
    GroupBatch,
    GroupLayout,
    completion_view,
    from_completion_view,
    pack,
    pad_rows,
    real_completions,
    rows,
    separate_rows,
    split_rows,
)
from shared.grpo.objective import (
    Sums,
    add,
    counts,
    denominator,
    metrics,
    objective,
)

__all__ = [
    "ARRAYS",
    "OPTIONAL_ARRAYS",
    "GroupBatch",
    "GroupLayout",
    "Sums",
    "add",
    "advantages",
    "completion_masks",
    "completion_view",
    "counts",
    "denominator",
    "from_completion_view",
    "metrics",
    "objective",
    "pack",
    "pad_rows",
    "real_completions",
    "rows",
    "separate_rows",
    "split_rows",
    "uniform_groups",
]
