"""The section `evaluation` of a run's config."""

from __future__ import annotations

import dataclasses

from shared.options.checks import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy evaluation on held-out patients, before and after."""

    max_new_tokens: int = 0  # longest completion; 0: as in rollout (the paper: 8,192)
    slots: int = 0  # questions that decode at once; 0: as in rollout
    bootstrap: int = 2_000  # resamples of patients for the intervals
    examples: int = (
        6  # completions shown in the report; only of synthetic patients, unless --show_examples allows others
    )

    def __post_init__(self) -> None:
        at_least(self, 0, "max_new_tokens", "slots", "examples")
        at_least(self, 100, "bootstrap")
