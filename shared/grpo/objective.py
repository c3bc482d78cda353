"""The objective from per-token log-probabilities: the float64 reference of both backends' `learner/loss.py`.

For token t of completion i: p the policy's log-probability, q the old policy's, A the advantage, m the mask,
n_i = max(1, sum_t m), sg(x) no gradient through x. The ratio r is, by `ratio_level`,

    token     r_it = exp(p - q)
    sequence  r_i  = exp(sum_t m (p - q) / n_i), the same for each token of the row

and on policy (no old log-probabilities) q = sg(p): the value of r is 1, its gradient is not 0. With N completions and
M = sum m tokens in the optimizer batch, and l the sum of a token's policy term and KL term, the loss is, by the normaliser in
its row of `shared/grpo/losses.py`,

    row_mean     1/N sum_i 1/n_i sum_t m l
    completions  1/N sum_i sum_t m l
    length       1/(N max_completion_length) sum m l
    tokens       1/M sum m l

The policy terms are in POLICY_TERMS below; the row names one. `objective` returns the sum before the first factor,
`denominator` that factor's inverse, so that sums over micro-batches, rows and devices add up to the same loss however the
optimizer batch was cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shared.errors import InputError
from shared.grpo.batch import GroupBatch, completion_view, real_completions
from shared.grpo.losses import LOSSES
from shared.grpo.section import GrpoConfig


class Sums(NamedTuple):
    """What one part of an optimizer batch contributes; parts are joined by `add`.

    Each is a scalar: a float here, an array in the backends. `Sums()` is the empty part.
    """

    loss: Any = 0.0  # numerator of the loss, differentiable in the backends
    completions: Any = 0.0  # real completions, those masked out whole included
    tokens: Any = 0.0  # tokens that count
    kl: Any = 0.0  # the rest are sums over those tokens: the KL estimator's value, 0 without a reference policy
    ratio: Any = 0.0  # ratio against the old policy
    clipped: Any = 0.0  # tokens whose policy term has no gradient because of the clip range, `delta` or the cap
    correction: Any = 0.0  # weight of the rollout correction; 1 for each token without one
    gap: Any = 0.0  # |learner - rollout| log-probability, 0 without rollout log-probabilities
    gap_max: Any = 0.0  # its largest value; `add` takes the larger one


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Arrays of a policy term, `[completions, time]`; log-probabilities and advantages are 0 where `counted` is false."""

    counted: np.ndarray  # bool
    advantages: np.ndarray
    logprobs: np.ndarray
    ratio: np.ndarray
    stopped_log_ratio: np.ndarray  # of single tokens, whatever the ratio's level
    stopped_ratio: np.ndarray


def objective(
    logprobs: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    config: GrpoConfig,
    *,
    row_mask: np.ndarray | None = None,
    old_logprobs: np.ndarray | None = None,
    ref_logprobs: np.ndarray | None = None,
    rollout_logprobs: np.ndarray | None = None,
    detached: np.ndarray | None = None,
) -> Sums:
    """The objective's numerator and counts over rows of completions, in float64 (formulas: top of this file).

    `logprobs`, `mask` and the optional log-probabilities are `[completions, time]`, `advantages` `[completions]` or
    `[completions, time]`. `row_mask` `[completions]` is 0 for rows that are padding (default: all are real); a row whose
    `mask` is all 0 is still a completion. Where the mask is 0 any value may stand, nan included.

    `detached` (default: `logprobs`) are the policy's log-probabilities wherever no gradient flows through them. Finite
    differences over `logprobs` with `detached` held fixed give the gradient that the backends compute.

    Raises InputError where the config needs reference or rollout log-probabilities that are not given.
    """
    check_inputs(config, ref_logprobs, rollout_logprobs)
    loss = LOSSES[config.loss]
    counted = np.asarray(mask) > 0
    rows = np.ones(counted.shape[0]) if row_mask is None else np.asarray(row_mask, np.float64)
    counted = counted & (rows > 0)[:, None]

    policy = _clean(logprobs, counted)
    stopped = policy if detached is None else _clean(detached, counted)
    old = stopped if old_logprobs is None else _clean(old_logprobs, counted)
    learner = stopped if old_logprobs is None else old
    advantages = np.asarray(advantages, np.float64)
    if advantages.ndim == 1:
        advantages = np.broadcast_to(advantages[:, None], counted.shape)
    tokens = Tokens(
        counted=counted,
        advantages=_clean(advantages, counted),
        logprobs=policy,
        ratio=_ratio(policy - old, counted, config.ratio_level),
        stopped_log_ratio=stopped - old,
        stopped_ratio=_ratio(stopped - old, counted, config.ratio_level),
    )

    correction = np.ones_like(policy)
    gap = np.zeros_like(policy)
    if rollout_logprobs is not None:
        difference = learner - _clean(rollout_logprobs, counted)
        gap = np.abs(difference)
        correction = correction_weight(difference, counted, config)

    terms = POLICY_TERMS[loss.term](tokens, config) * correction
    if config.off_policy_mask_threshold is not None:
        terms = np.where(_too_far(tokens, config.off_policy_mask_threshold), 0.0, terms)
    kl = np.zeros_like(policy)
    if ref_logprobs is not None:
        kl = kl_estimate(policy, _clean(ref_logprobs, counted), config.kl_estimator)
    if config.beta > 0:
        terms = terms + config.beta * (kl * tokens.ratio if config.kl_in_ratio else kl)
    if loss.normaliser == "row_mean":
        terms = terms / np.maximum(1, counted.sum(axis=1, keepdims=True))

    def total(values: np.ndarray) -> float:
        return float(np.where(counted, values, 0.0).sum())

    return Sums(
        loss=total(terms),
        completions=float(rows.sum()),
        tokens=float(counted.sum()),
        kl=total(kl),
        ratio=total(tokens.ratio),
        clipped=total(_is_clipped(tokens, config)),
        correction=total(correction),
        gap=total(gap),
        gap_max=float(np.where(counted, gap, 0.0).max(initial=0.0)),
    )


def counts(batch: GroupBatch) -> Sums:
    """The counts that the whole `batch` is divided by; every other sum is 0."""
    real = real_completions(batch.groups, batch.layout)
    counted = (completion_view(batch.completion_mask, batch.layout) > 0) & (real > 0)[:, None]
    return Sums()._replace(completions=float(real.sum()), tokens=float(counted.sum()))


def denominator(sums: Sums, config: GrpoConfig, max_completion_length: int) -> float:
    """What the accumulated loss and gradients are divided by, once, from the `sums` of the whole optimizer batch.

    Normaliser tokens: tokens. Normaliser length: completions * max_completion_length. Others: completions. At least 1.
    """
    normaliser = LOSSES[config.loss].normaliser
    if normaliser == "tokens":
        return max(1.0, sums.tokens)
    completions = max(1.0, sums.completions)
    return completions * max_completion_length if normaliser == "length" else completions


def add(first: Sums, second: Sums) -> Sums:
    """The sums of two parts of a batch together."""
    added = Sums._make(a + b for a, b in zip(first, second, strict=True))
    return added._replace(gap_max=max(first.gap_max, second.gap_max))


def metrics(
    sums: Sums, config: GrpoConfig, max_completion_length: int, *, entropy: float = 0.0, logprob: float = 0.0
) -> dict[str, float]:
    """Loss and means over tokens for the log, from the `sums` (of any backend) of the whole optimizer batch.

    `entropy` and `logprob` are sums over the same tokens.
    """
    sums = Sums._make(float(value) for value in sums)
    tokens = max(1.0, sums.tokens)
    return {
        "loss": sums.loss / denominator(sums, config, max_completion_length),
        "kl": sums.kl / tokens,
        "ratio": sums.ratio / tokens,
        "clip_fraction": sums.clipped / tokens,
        "rollout_correction": sums.correction / tokens,
        "logprob_gap": sums.gap / tokens,
        "logprob_gap_max": sums.gap_max,
        "tokens": sums.tokens,
        "completions": sums.completions,
        "entropy": entropy / tokens,
        "mean_logprob": logprob / tokens,
    }


def check_inputs(config: GrpoConfig, ref_logprobs: Any, rollout_logprobs: Any) -> None:
    """Raise InputError where `config` needs log-probabilities that are None."""
    if config.beta > 0 and ref_logprobs is None:
        raise InputError(f"beta = {config.beta}: needs reference log-probabilities; give them, or set beta = 0")
    if config.rollout_correction != "none" and rollout_logprobs is None:
        raise InputError(
            f"rollout_correction = {config.rollout_correction!r}: needs rollout log-probabilities; give them, or set 'none'"
        )


def clipped_term(tokens: Tokens, config: GrpoConfig) -> np.ndarray:
    """-min( min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A ); without `delta` the first is r A.

    `delta` caps the unclipped branch only, so it bites where A < 0. Source: PPO; DAPO for two epsilons.
    """
    capped = tokens.ratio if config.delta is None else np.minimum(tokens.ratio, config.delta)
    clipped = np.clip(tokens.ratio, 1 - config.epsilon_low, 1 + config.epsilon_high)
    return -np.minimum(capped * tokens.advantages, clipped * tokens.advantages)


def soft_gate_term(tokens: Tokens, config: GrpoConfig) -> np.ndarray:
    """-A (4 / tau) sigmoid(tau (r - 1)), tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg (SAPO)."""
    tau = np.where(tokens.advantages > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
    return -tokens.advantages * 4 / tau / (1 + np.exp(-tau * (tokens.ratio - 1)))


def capped_ratio_term(tokens: Tokens, config: GrpoConfig) -> np.ndarray:
    """-sg(min(r, epsilon_high)) A p: `epsilon_high` is the cap on the ratio itself, with no lower bound (CISPO)."""
    return -np.minimum(tokens.stopped_ratio, config.epsilon_high) * tokens.advantages * tokens.logprobs


def sequence_weight_term(tokens: Tokens, config: GrpoConfig) -> np.ndarray:
    """-sg(phi) A p with phi = exp(lambda + k log w - lambda w) (VESPO).

    log w = clip( sum_t m clip(p - q, -20, 20), log 1e-8, 20 ) for each row: a sum, not a mean. k and lambda are
    `vespo_k_pos`, `vespo_lambda_pos` where A >= 0, else the `_neg` pair.
    """
    bounded = np.clip(tokens.stopped_log_ratio, -20, 20)
    log_w = np.clip(np.where(tokens.counted, bounded, 0.0).sum(axis=1, keepdims=True), np.log(1e-8), 20)
    k = np.where(tokens.advantages >= 0, config.vespo_k_pos, config.vespo_k_neg)
    lam = np.where(tokens.advantages >= 0, config.vespo_lambda_pos, config.vespo_lambda_neg)
    phi = np.exp(lam + k * log_w - lam * np.exp(log_w))
    return -phi * tokens.advantages * tokens.logprobs


POLICY_TERMS: dict[str, Callable[[Tokens, GrpoConfig], np.ndarray]] = {
    "clipped": clipped_term,
    "soft_gate": soft_gate_term,
    "capped_ratio": capped_ratio_term,
    "sequence_weight": sequence_weight_term,
}


def kl_estimate(logprobs: np.ndarray, ref_logprobs: np.ndarray, estimator: str) -> np.ndarray:
    """KL of the policy from the reference, per token, with d = ref - logp (spec: grpo, section 2).

    k1 = -d; k2 = d^2 / 2; k3 = exp(d) - 1 - d, as expm1(d) - d. As a loss k1 has a gradient of mean 0 on policy.
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d**2 / 2
    return np.expm1(d) - d


def correction_weight(difference: np.ndarray, counted: np.ndarray, config: GrpoConfig) -> np.ndarray:
    """Truncated importance weight of the learner against the engine that sampled; no gradient flows through it.

    With `difference` = learner - rollout log-probability: min(exp(difference), cap) for each token, or, for `sequence`,
    of its mean over the row's tokens (the geometric mean of the ratios). It multiplies the policy term, not the KL term.
    """
    if config.rollout_correction == "none":
        return np.ones_like(difference)
    return np.minimum(_ratio(difference, counted, config.rollout_correction), config.rollout_correction_cap)


def _clean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != counted.shape:
        raise ValueError(f"an array of shape {values.shape} goes with a mask of shape {counted.shape}")
    return np.where(counted, values, 0.0)


def _row_mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    means = values.sum(axis=1, keepdims=True, where=counted) / np.maximum(1, counted.sum(axis=1, keepdims=True))
    return np.broadcast_to(means, values.shape)


def _ratio(log_ratio: np.ndarray, counted: np.ndarray, level: str) -> np.ndarray:
    return np.exp(log_ratio if level == "token" else _row_mean(log_ratio, counted))


def _too_far(tokens: Tokens, threshold: float) -> np.ndarray:
    """Rows that the policy left: A < 0 and sg( sum_t m (q - p) / n_i ) above the threshold. The KL term stays."""
    return (tokens.advantages < 0) & (_row_mean(-tokens.stopped_log_ratio, tokens.counted) > threshold)


def _is_clipped(tokens: Tokens, config: GrpoConfig) -> np.ndarray:
    rule = LOSSES[config.loss].clip
    if rule == "cap":
        return tokens.stopped_ratio > config.epsilon_high
    if rule == "none":
        return np.zeros_like(tokens.counted)
    low, high = 1 - config.epsilon_low, 1 + config.epsilon_high
    cap = np.inf if config.delta is None else max(config.delta, high)
    below = (tokens.ratio < low) | (tokens.ratio > cap)
    return np.where(tokens.advantages < 0, below, (tokens.advantages > 0) & (tokens.ratio > high))
