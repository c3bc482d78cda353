"""The learning rate of every optimizer step: one definition for both backends."""

from __future__ import annotations

import dataclasses
import math

from shared.options.checks import at_least, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up from 0 and cosine decay to 0."""

    learning_rate: float = 1e-6  # peak (spec: grpo, section 1)
    warmup_ratio: float = 0.1  # of all steps, rounded up (spec: grpo, section 1)
    b1: float = 0.9  # decay of Adam's first moment (spec: grpo, section 1)
    b2: float = 0.999  # decay of Adam's second moment (spec: grpo, section 1)
    eps: float = 1e-8  # added to the root of the second moment (spec: grpo, section 1)
    weight_decay: float = 0.0  # decoupled, as in AdamW (spec: grpo, section 1)
    max_grad_norm: float = 1.0  # the gradient's global norm is clipped to this (spec: grpo, section 1)

    def __post_init__(self) -> None:
        at_least(self, 0, "learning_rate", "weight_decay")
        check(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "must be in [0, 1)")
        check(0 <= self.b1 < 1, "b1", self.b1, "must be in [0, 1)")
        check(0 <= self.b2 < 1, "b2", self.b2, "must be in [0, 1)")
        check(self.eps > 0, "eps", self.eps, "must be above 0")
        check(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "must be above 0")


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
