"""How questions about masked values are made: the fields of the config's section `data` that `denoising` reads."""

from __future__ import annotations

import dataclasses
from typing import Literal

from shared.options.checks import at_least, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionRules:
    """How questions about masked values are made; part of the section `data` (`shared.preparation.section.DataConfig`)."""

    num_choices: int = 5  # options of a question, 2 to 5 (spec: registry, section e)
    # Distance between options that are numbers, in standard deviations: smaller is harder (spec: registry, section e).
    difficulty: float = 2.0
    mi_cutoff: float = 0.5  # nats; features that share more with the masked one are hidden (spec: registry, section e)
    masked: int = 1  # values masked together in a record; each is asked for
    causal: bool = False  # show nothing from sections that a record shows after that of the masked value
    core_features: int = 0  # keep only so many features of the registry, the most informative; 0 keeps all
    core_kind: Literal["any", "category", "number"] = "any"  # kind of the features kept
    # "sorted" shows options in the order of the codebook, or of the numbers, for policies too small to look a letter up.
    option_order: Literal["shuffled", "sorted"] = "shuffled"
    context_features: int = 0  # features shown in a record; 0 shows the whole record, as the paper does

    def __post_init__(self) -> None:
        at_least(self, 1, "masked")
        at_least(self, 0, "core_features", "context_features", "mi_cutoff")
        check(2 <= self.num_choices <= 5, "num_choices", self.num_choices, "must be 2 to 5, the letters A to E")
        check(self.difficulty > 0, "difficulty", self.difficulty, "must be above 0")
