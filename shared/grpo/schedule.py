"""The learning rate of every optimizer step: one definition for both backends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the config reads the table of losses, which is of this room
    from shared.config import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, steps: int) -> float:
    """Learning rate used in update number `step` (0, 1, ...) of `steps`.

    Linear from 0 over ceil(warmup_ratio * steps) updates, then a cosine to 0 at `steps`; the first update has rate 0
    (spec: grpo, section 1).
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
