"""The GRPO objective in PyTorch: the twin of `shared.grpo.objective`, where every formula is stated.

Same names, same order. Arithmetic is float32 (float64 where the log-probabilities are). `.detach()` stands where the
formulas say sg(x). Masked positions are replaced before any arithmetic, so garbage there, nan included, reaches neither
values nor gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from shared.config import GrpoConfig
from shared.grpo import Sums
from shared.grpo.losses import LOSSES
from shared.grpo.objective import check_inputs


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Arrays of a policy term, `[completions, time]`; log-probabilities and advantages are 0 where `counted` is false."""

    counted: torch.Tensor  # bool
    advantages: torch.Tensor
    logprobs: torch.Tensor
    ratio: torch.Tensor
    stopped_log_ratio: torch.Tensor  # of single tokens, whatever the ratio's level
    stopped_ratio: torch.Tensor


def objective(
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    config: GrpoConfig,
    *,
    row_mask: torch.Tensor | None = None,
    old_logprobs: torch.Tensor | None = None,
    ref_logprobs: torch.Tensor | None = None,
    rollout_logprobs: torch.Tensor | None = None,
) -> Sums:
    """The objective's numerator and counts over rows of completions; `.loss` is differentiable in `logprobs`.

    `logprobs`, `mask` and the optional log-probabilities are `[completions, time]`, `advantages` `[completions]` or
    `[completions, time]`, `row_mask` `[completions]` with 0 for rows that are padding. Only `.loss` carries a gradient.
    Nothing is divided by the batch's counts here: see `shared.grpo.denominator`.

    Raises InputError where the config needs reference or rollout log-probabilities that are not given.
    """
    check_inputs(config, ref_logprobs, rollout_logprobs)
    loss = LOSSES[config.loss]
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    counted = mask > 0
    rows = logprobs.new_ones(len(counted), dtype=dtype) if row_mask is None else row_mask.to(dtype)
    counted = counted & (rows > 0)[:, None]

    policy = _clean(logprobs, counted, dtype)
    stopped = policy.detach()
    old = stopped if old_logprobs is None else _clean(old_logprobs, counted, dtype).detach()
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand(counted.shape)
    ratio = _ratio(policy - old, counted, config.ratio_level)
    tokens = Tokens(
        counted=counted,
        advantages=_clean(advantages, counted, dtype).detach(),
        logprobs=policy,
        ratio=ratio,
        stopped_log_ratio=stopped - old,
        stopped_ratio=ratio.detach(),
    )

    correction = torch.ones_like(stopped)
    gap = torch.zeros_like(stopped)
    if rollout_logprobs is not None:
        difference = old - _clean(rollout_logprobs, counted, dtype).detach()
        gap = difference.abs()
        correction = correction_weight(difference, counted, config)

    terms = POLICY_TERMS[loss.term](tokens, config) * correction
    if config.off_policy_mask_threshold is not None:
        terms = torch.where(_too_far(tokens, config.off_policy_mask_threshold), 0.0, terms)
    kl = torch.zeros_like(stopped)
    if ref_logprobs is not None:
        kl = kl_estimate(policy, _clean(ref_logprobs, counted, dtype).detach(), config.kl_estimator)
    if config.beta > 0:
        terms = terms + config.beta * (kl * tokens.ratio if config.kl_in_ratio else kl)
    if loss.normaliser == "row_mean":
        terms = terms / counted.sum(dim=1, keepdim=True).clamp(min=1)

    def total(values: torch.Tensor) -> torch.Tensor:
        return torch.where(counted, values, 0.0).sum(dtype=dtype)

    return Sums(
        loss=total(terms),
        completions=rows.sum(),
        tokens=counted.sum(dtype=dtype),
        kl=total(kl.detach()),
        ratio=total(tokens.stopped_ratio),
        clipped=total(_is_clipped(tokens, config)),
        correction=total(correction),
        gap=total(gap),
        gap_max=torch.where(counted, gap, 0.0).max(),
    )


def add(first: Sums, second: Sums) -> Sums:
    """The sums of two parts of a batch together."""
    added = Sums._make(a + b for a, b in zip(first, second, strict=True))
    largest = torch.maximum(torch.as_tensor(first.gap_max), torch.as_tensor(second.gap_max))
    return added._replace(gap_max=largest)


def clipped_term(tokens: Tokens, config: GrpoConfig) -> torch.Tensor:
    """-min( min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A ); without `delta` the first is r A."""
    capped = (
        tokens.ratio if config.delta is None else torch.where(tokens.ratio > config.delta, config.delta, tokens.ratio)
    )
    clipped = torch.clamp(tokens.ratio, 1 - config.epsilon_low, 1 + config.epsilon_high)
    unclipped_branch, clipped_branch = capped * tokens.advantages, clipped * tokens.advantages
    # torch.minimum halves the gradient between equal branches; at the clip range's own edge half of it would be lost.
    return -torch.where(clipped_branch < unclipped_branch, clipped_branch, unclipped_branch)


def soft_gate_term(tokens: Tokens, config: GrpoConfig) -> torch.Tensor:
    """-A (4 / tau) sigmoid(tau (r - 1)), tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg."""
    # Between two plain numbers `where` gives torch's default dtype: float32 inside a float64 objective.
    tau = torch.full_like(tokens.advantages, config.sapo_temperature_neg)
    tau = tau.masked_fill(tokens.advantages > 0, config.sapo_temperature_pos)
    return -tokens.advantages * 4 / tau * torch.sigmoid(tau * (tokens.ratio - 1))


def capped_ratio_term(tokens: Tokens, config: GrpoConfig) -> torch.Tensor:
    """-sg(min(r, epsilon_high)) A p: `epsilon_high` is the cap on the ratio itself, with no lower bound."""
    return -tokens.stopped_ratio.clamp(max=config.epsilon_high) * tokens.advantages * tokens.logprobs


def sequence_weight_term(tokens: Tokens, config: GrpoConfig) -> torch.Tensor:
    """-sg(phi) A p with phi = exp(lambda + k log w - lambda w), log w the bounded sum of a row's log ratios."""
    bounded = tokens.stopped_log_ratio.clamp(-20, 20)
    log_w = torch.where(tokens.counted, bounded, 0.0).sum(dim=1, keepdim=True).clamp(math.log(1e-8), 20)
    not_negative = tokens.advantages >= 0
    k = torch.full_like(tokens.advantages, config.vespo_k_neg).masked_fill(not_negative, config.vespo_k_pos)
    lam = torch.full_like(tokens.advantages, config.vespo_lambda_neg).masked_fill(not_negative, config.vespo_lambda_pos)
    phi = torch.exp(lam + k * log_w - lam * torch.exp(log_w))
    return -phi * tokens.advantages * tokens.logprobs


POLICY_TERMS: dict[str, Callable[[Tokens, GrpoConfig], torch.Tensor]] = {
    "clipped": clipped_term,
    "soft_gate": soft_gate_term,
    "capped_ratio": capped_ratio_term,
    "sequence_weight": sequence_weight_term,
}


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """KL of the policy from the reference, per token: k1 = -d, k2 = d^2 / 2, k3 = expm1(d) - d with d = ref - logp."""
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d**2 / 2
    return torch.expm1(d) - d


def correction_weight(difference: torch.Tensor, counted: torch.Tensor, config: GrpoConfig) -> torch.Tensor:
    """Truncated importance weight from `difference` = learner - rollout log-probability, without gradient."""
    if config.rollout_correction == "none":
        return torch.ones_like(difference)
    return _ratio(difference, counted, config.rollout_correction).clamp(max=config.rollout_correction_cap)


def _clean(values: torch.Tensor, counted: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if values.shape != counted.shape:
        raise ValueError(f"an array of shape {tuple(values.shape)} goes with a mask of shape {tuple(counted.shape)}")
    return torch.where(counted, values.to(dtype), 0.0)


def _row_mean(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    totals = torch.where(counted, values, 0.0).sum(dim=1, keepdim=True)
    return (totals / counted.sum(dim=1, keepdim=True).clamp(min=1)).expand(values.shape)


def _ratio(log_ratio: torch.Tensor, counted: torch.Tensor, level: str) -> torch.Tensor:
    return torch.exp(log_ratio if level == "token" else _row_mean(log_ratio, counted))


def _too_far(tokens: Tokens, threshold: float) -> torch.Tensor:
    return (tokens.advantages < 0) & (_row_mean(-tokens.stopped_log_ratio, tokens.counted) > threshold)


def _is_clipped(tokens: Tokens, config: GrpoConfig) -> torch.Tensor:
    rule = LOSSES[config.loss].clip
    if rule == "cap":
        return tokens.stopped_ratio > config.epsilon_high
    if rule == "none":
        return torch.zeros_like(tokens.counted)
    low, high = 1 - config.epsilon_low, 1 + config.epsilon_high
    cap = math.inf if config.delta is None else max(config.delta, high)
    ratio = tokens.stopped_ratio
    below = (ratio < low) | (ratio > cap)
    return torch.where(tokens.advantages < 0, below, (tokens.advantages > 0) & (ratio > high))
