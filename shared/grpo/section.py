"""The section `grpo` of a run's config, and the presets that it can start from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import InputError
from shared.grpo import losses
from shared.options.checks import at_least, check

# The names of a table are a field's choices; a type checker cannot read them from a value.
if TYPE_CHECKING:
    Loss = str
else:
    Loss = Literal[tuple(losses.LOSSES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """The objective (spec: grpo, sections 2 and 4). `preset` is the name of the choices this started from."""

    preset: Literal["paper", "paper_fixed", "modern"] = "paper"  # the choices this started from (docs/spec/grpo.md)
    group_size: int = 7  # G, completions for each question (spec: grpo, section 1)
    questions_per_step: int = 5  # questions of an optimizer step (spec: grpo, section 1)
    steps: int = 0  # optimizer steps; 0: as many as one epoch of the training questions gives
    inner_steps: int = 1  # optimizer steps on one set of rollouts (spec: grpo, section 2)
    # how tokens are weighted, and the policy term; formulas: shared/grpo/objective.py (spec: grpo, section 2)
    loss: Loss = "grpo"
    # ratio to the old policy, of each token or of a completion (its mean over tokens)
    ratio_level: Literal["token", "sequence"] = "token"
    epsilon_low: float = 0.2  # the ratio is clipped below 1 - this
    epsilon_high: float = 0.2  # the ratio is clipped above 1 + this; cispo: the cap on the ratio itself
    delta: float | None = None  # cap on the ratio where the advantage is negative; None: no cap
    # standard deviation that centred rewards are divided by: the group's, the batch's, or none (spec: grpo, section 2)
    advantage_scale: Literal["group", "batch", "none"] = "group"
    # weight of the KL to the reference policy; 0: no reference policy in memory (spec: grpo, section 1)
    beta: float = 0.04
    # estimator of the KL, for each token; k3 is exp(d) - d - 1 with d = reference - policy (spec: grpo, section 1)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in_ratio: bool = False  # multiply the KL term by the ratio (TRL calls it kl_bias_correction)
    mask_truncated: bool = False  # completions that the length limit ended carry no loss
    # groups with equal rewards stay, are left out, or are replaced by further questions (spec: grpo, section 2)
    uniform_groups: Literal["keep", "drop", "refill"] = "keep"
    # importance weight between the engine's and the learner's log-probabilities
    rollout_correction: Literal["none", "token", "sequence"] = "none"
    rollout_correction_cap: float = 2.0  # that weight is cut to this
    # nats a token; completions with a negative advantage that drifted further from the old policy carry no policy term
    off_policy_mask_threshold: float | None = None
    sapo_temperature_pos: float = 1.0  # of the sapo gate where the advantage is positive
    sapo_temperature_neg: float = 1.05  # of the sapo gate elsewhere
    vespo_k_pos: float = 2.0  # exponent of the vespo weight where the advantage is not negative
    vespo_lambda_pos: float = 3.0  # decay of the vespo weight where the advantage is not negative
    vespo_k_neg: float = 3.0  # exponent of the vespo weight where the advantage is negative
    vespo_lambda_neg: float = 2.0  # decay of the vespo weight where the advantage is negative
    # what logits are divided by when log-probabilities are scored: 1, or rollout.temperature (spec: grpo, section 2)
    score_temperature: Literal["one", "sampling"] = "one"
    # optimizer steps between moves of the reference policy; 0: it never moves (spec: grpo, section 1)
    ref_sync_steps: int = 64
    ref_mixup: float = 0.9  # a move is ref <- ref_mixup * policy + (1 - ref_mixup) * ref (spec: grpo, section 1)
    reward_answer: float = 1.0  # for the right letter in a box (spec: grpo, section 3)
    reward_format: float = 0.0  # for any box with a letter in it
    reward_length: float = 0.0  # for completions that end by themselves
    overlong_soft: int = 0  # tokens; from here to the limit a penalty grows linearly to -1; 0: off
    # Which box is the answer, for the terms answer and format alike (shared/questions/boxes.py): the first, read strictly (the
    # paper), or the last behind the reasoning, read leniently. The evaluations of a run report by it, with the other one beside.
    answer_rule: Literal["strict_first", "lenient_last"] = "strict_first"
    # prompts above max_prompt_tokens lose their beginning, or are left out (spec: grpo, section 1)
    overlong_prompts: Literal["truncate_left", "drop"] = "truncate_left"
    max_logprob_gap: float = 0.5  # nats, mean over a batch's tokens; a run stops beyond it

    def __post_init__(self) -> None:
        at_least(self, 2, "group_size")
        at_least(self, 1, "questions_per_step", "inner_steps")
        at_least(self, 0, "steps", "beta", "epsilon_low", "epsilon_high", "ref_sync_steps", "overlong_soft",
                 "rollout_correction_cap", "reward_answer")  # fmt: skip
        check(self.delta is None or self.delta > 0, "delta", self.delta, "must be above 0, or None")
        check(0 <= self.ref_mixup <= 1, "ref_mixup", self.ref_mixup, "must be in [0, 1]")
        check(self.max_logprob_gap > 0, "max_logprob_gap", self.max_logprob_gap, "must be above 0")
        check(self.epsilon_low < 1, "epsilon_low", self.epsilon_low, "must be below 1: the ratio is positive")
        level = losses.LOSSES[self.loss].ratio_level
        check(level in (None, self.ratio_level), "ratio_level", self.ratio_level,
              f"must be {level!r} with loss = {self.loss!r}")  # fmt: skip
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, reason in losses.unread(loss=self.loss).items():
            check(getattr(self, name) == defaults[name], name, getattr(self, name), reason)


PRESETS: dict[str, dict[str, Any]] = {
    # The authors' run (spec: grpo, sections 1 and 2).
    "paper": {"preset": "paper"},
    # The same recipe; prompts that are too long are left out instead of losing their system prompt.
    "paper_fixed": {"preset": "paper_fixed", "overlong_prompts": "drop"},
    # The best-supported choices since: token-level normaliser, asymmetric clip, no KL and so no reference model, truncated
    # importance sampling, and groups without a difference replaced by further questions (spec: grpo, section 4). The answer is
    # the last box, read leniently: a model may change its mind, and write a letter as models do (spec: registry, quirk 35).
    "modern": {
        "preset": "modern",
        "loss": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "rollout_correction": "token",
        "uniform_groups": "refill",
        "mask_truncated": True,
        "answer_rule": "lenient_last",
        "overlong_prompts": "drop",
    },
}
NOT_IN_PRESETS = ("preset", "steps")  # a preset says how a step is made, not how many are


def grpo_preset(name: str) -> dict[str, Any]:
    """The fields of `GrpoConfig` that a preset sets, to start a config file's `grpo` section from."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def changed_in_preset(config: GrpoConfig) -> list[str]:
    """Fields of the `grpo` section that are not what its preset says, in the section's order."""
    wanted = GrpoConfig(**PRESETS[config.preset])
    names = [field.name for field in dataclasses.fields(GrpoConfig) if field.name not in NOT_IN_PRESETS]
    return [name for name in names if getattr(config, name) != getattr(wanted, name)]
