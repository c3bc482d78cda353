"""The losses of the objective, one row each: policy term of a token, divisor of the sum, which tokens count as clipped, fields.

A loss is a row here and the formula of its term, which stands three times on purpose: in `shared/grpo/objective.py` (NumPy,
float64), `creason_jax/learner/loss.py` and `creason_torch/learner/loss.py`. Each has a dictionary `POLICY_TERMS` from the name of
a term to its own formula. Keys are the values of `grpo.loss`. Plain data: nothing here imports anything of ours.
"""

from __future__ import annotations

import dataclasses

# What the sum over tokens is divided by.
NORMALISERS = {
    "row_mean": "tokens of each completion, then completions of the batch",
    "completions": "completions of the batch",
    "length": "completions of the batch times the longest completion allowed",
    "tokens": "tokens of the batch",
}
# Which tokens the metric clip_fraction counts, with r the ratio to the old policy and A the advantage.
CLIP_RULES = {
    "range": "where A < 0: r below 1 - epsilon_low, or above delta and 1 + epsilon_high; where A > 0: r above 1 + epsilon_high",
    "cap": "r above epsilon_high",
    "none": "none",
}
CLIP_RANGE = ("epsilon_low", "epsilon_high", "delta")
ALWAYS_ALLOWED = (
    "epsilon_low",
    "epsilon_high",
)  # presets set them, and a file may choose another loss after its preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """A row. Raises ValueError for a normaliser or a clip rule that there is not."""

    term: str  # key of POLICY_TERMS
    normaliser: str  # key of NORMALISERS
    clip: str = "none"  # key of CLIP_RULES
    reads: tuple[str, ...] = ()  # fields of the grpo section that the term reads
    ratio_level: str | None = None  # the `grpo.ratio_level` that defines the loss; None: either

    def __post_init__(self) -> None:
        for name, known in ((self.normaliser, NORMALISERS), (self.clip, CLIP_RULES)):
            if name not in known:
                raise ValueError(f"a loss cannot have {name!r}; there are {', '.join(known)}")


LOSSES: dict[str, Loss] = {
    "grpo": Loss(term="clipped", normaliser="row_mean", clip="range", reads=CLIP_RANGE),
    "bnpo": Loss(term="clipped", normaliser="tokens", clip="range", reads=CLIP_RANGE),
    "dr_grpo": Loss(term="clipped", normaliser="length", clip="range", reads=CLIP_RANGE),
    # As bnpo here. Elsewhere they differ: there the tokens of bnpo are those of a micro-batch.
    "dapo": Loss(term="clipped", normaliser="tokens", clip="range", reads=CLIP_RANGE),
    "gspo": Loss(term="clipped", normaliser="row_mean", clip="range", reads=CLIP_RANGE, ratio_level="sequence"),
    "cispo": Loss(term="capped_ratio", normaliser="tokens", clip="cap", reads=("epsilon_high",)),
    "sapo": Loss(term="soft_gate", normaliser="row_mean", reads=("sapo_temperature_pos", "sapo_temperature_neg")),
    "vespo": Loss(
        term="sequence_weight",
        normaliser="tokens",
        reads=("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    ),
    "luspo": Loss(term="clipped", normaliser="completions", clip="range", reads=CLIP_RANGE),
}


def unread(*, loss: str) -> dict[str, str]:
    """The fields that only other losses read, but for ALWAYS_ALLOWED, and for each the reason, as the end of a message."""
    if loss not in LOSSES:
        return {}
    allowed = {*LOSSES[loss].reads, *ALWAYS_ALLOWED}
    others = [name for row in LOSSES.values() for name in row.reads if name not in allowed]
    return dict.fromkeys(others, f"loss {loss!r} does not read it; leave it out")
