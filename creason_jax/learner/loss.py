"""The GRPO objective in jax.numpy: the twin of `shared.grpo.objective`, where every formula is stated.

Same names, same order. Arithmetic is float32 (float64 where the log-probabilities are). `jax.lax.stop_gradient` stands
where the formulas say sg(x). Masked positions are replaced before any arithmetic, so garbage there, nan included,
reaches neither values nor gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from shared.config import GrpoConfig
from shared.grpo import Sums
from shared.grpo.losses import LOSSES
from shared.grpo.objective import check_inputs


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Arrays of a policy term, `[completions, time]`; log-probabilities and advantages are 0 where `counted` is false."""

    counted: jax.Array  # bool
    advantages: jax.Array
    logprobs: jax.Array
    ratio: jax.Array
    stopped_log_ratio: jax.Array  # of single tokens, whatever the ratio's level
    stopped_ratio: jax.Array


def objective(
    logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    config: GrpoConfig,
    *,
    row_mask: jax.Array | None = None,
    old_logprobs: jax.Array | None = None,
    ref_logprobs: jax.Array | None = None,
    rollout_logprobs: jax.Array | None = None,
) -> Sums:
    """The objective's numerator and counts over rows of completions; `.loss` is differentiable in `logprobs`.

    `logprobs`, `mask` and the optional log-probabilities are `[completions, time]`, `advantages` `[completions]` or
    `[completions, time]`, `row_mask` `[completions]` with 0 for rows that are padding; `config` is static. Nothing is
    divided by the batch's counts here: see `shared.grpo.denominator`.

    Raises InputError where the config needs reference or rollout log-probabilities that are not given.
    """
    check_inputs(config, ref_logprobs, rollout_logprobs)
    loss = LOSSES[config.loss]
    dtype = jnp.promote_types(logprobs.dtype, jnp.float32)
    counted = jnp.asarray(mask) > 0
    rows = jnp.ones(counted.shape[0], dtype) if row_mask is None else jnp.asarray(row_mask, dtype)
    counted = counted & (rows > 0)[:, None]

    policy = _clean(logprobs, counted, dtype)
    stopped = stop_gradient(policy)
    old = stopped if old_logprobs is None else stop_gradient(_clean(old_logprobs, counted, dtype))
    advantages = jnp.asarray(advantages, dtype)
    if advantages.ndim == 1:
        advantages = jnp.broadcast_to(advantages[:, None], counted.shape)
    ratio = _ratio(policy - old, counted, config.ratio_level)
    tokens = Tokens(
        counted=counted,
        advantages=stop_gradient(_clean(advantages, counted, dtype)),
        logprobs=policy,
        ratio=ratio,
        stopped_log_ratio=stopped - old,
        stopped_ratio=stop_gradient(ratio),
    )

    correction = jnp.ones_like(policy)
    gap = jnp.zeros_like(policy)
    if rollout_logprobs is not None:
        difference = old - stop_gradient(_clean(rollout_logprobs, counted, dtype))
        gap = jnp.abs(difference)
        correction = correction_weight(difference, counted, config)

    terms = POLICY_TERMS[loss.term](tokens, config) * correction
    if config.off_policy_mask_threshold is not None:
        terms = jnp.where(_too_far(tokens, config.off_policy_mask_threshold), 0.0, terms)
    kl = jnp.zeros_like(policy)
    if ref_logprobs is not None:
        kl = kl_estimate(policy, stop_gradient(_clean(ref_logprobs, counted, dtype)), config.kl_estimator)
    if config.beta > 0:
        terms = terms + config.beta * (kl * tokens.ratio if config.kl_in_ratio else kl)
    if loss.normaliser == "row_mean":
        terms = terms / jnp.maximum(1, counted.sum(axis=1, keepdims=True))

    def total(values: jax.Array) -> jax.Array:
        return jnp.where(counted, values, 0.0).sum(dtype=dtype)

    return Sums(
        loss=total(terms),
        completions=rows.sum(),
        tokens=counted.sum(dtype=dtype),
        kl=total(stop_gradient(kl)),
        ratio=total(tokens.stopped_ratio),
        clipped=total(_is_clipped(tokens, config)),
        correction=total(correction),
        gap=total(gap),
        gap_max=jnp.where(counted, gap, 0.0).max(initial=0.0),
    )


def add(first: Sums, second: Sums) -> Sums:
    """The sums of two parts of a batch together."""
    added = Sums._make(a + b for a, b in zip(first, second, strict=True))
    return added._replace(gap_max=jnp.maximum(first.gap_max, second.gap_max))


def clipped_term(tokens: Tokens, config: GrpoConfig) -> jax.Array:
    """-min( min(r, delta) A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A ); without `delta` the first is r A."""
    capped = (
        tokens.ratio if config.delta is None else jnp.where(tokens.ratio > config.delta, config.delta, tokens.ratio)
    )
    clipped = jnp.clip(tokens.ratio, 1 - config.epsilon_low, 1 + config.epsilon_high)
    unclipped_branch, clipped_branch = capped * tokens.advantages, clipped * tokens.advantages
    # jnp.minimum halves the gradient between equal branches; at the clip range's own edge half of it would be lost.
    return -jnp.where(clipped_branch < unclipped_branch, clipped_branch, unclipped_branch)


def soft_gate_term(tokens: Tokens, config: GrpoConfig) -> jax.Array:
    """-A (4 / tau) sigmoid(tau (r - 1)), tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg."""
    tau = jnp.where(tokens.advantages > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
    return -tokens.advantages * 4 / tau * jax.nn.sigmoid(tau * (tokens.ratio - 1))


def capped_ratio_term(tokens: Tokens, config: GrpoConfig) -> jax.Array:
    """-sg(min(r, epsilon_high)) A p: `epsilon_high` is the cap on the ratio itself, with no lower bound."""
    return -jnp.minimum(tokens.stopped_ratio, config.epsilon_high) * tokens.advantages * tokens.logprobs


def sequence_weight_term(tokens: Tokens, config: GrpoConfig) -> jax.Array:
    """-sg(phi) A p with phi = exp(lambda + k log w - lambda w), log w the bounded sum of a row's log ratios."""
    bounded = jnp.clip(tokens.stopped_log_ratio, -20, 20)
    log_w = jnp.clip(jnp.where(tokens.counted, bounded, 0.0).sum(axis=1, keepdims=True), jnp.log(1e-8), 20)
    not_negative = tokens.advantages >= 0
    k = jnp.where(not_negative, config.vespo_k_pos, config.vespo_k_neg)
    lam = jnp.where(not_negative, config.vespo_lambda_pos, config.vespo_lambda_neg)
    phi = jnp.exp(lam + k * log_w - lam * jnp.exp(log_w))
    return -phi * tokens.advantages * tokens.logprobs


POLICY_TERMS: dict[str, Callable[[Tokens, GrpoConfig], jax.Array]] = {
    "clipped": clipped_term,
    "soft_gate": soft_gate_term,
    "capped_ratio": capped_ratio_term,
    "sequence_weight": sequence_weight_term,
}


def kl_estimate(logprobs: jax.Array, ref_logprobs: jax.Array, estimator: str) -> jax.Array:
    """KL of the policy from the reference, per token: k1 = -d, k2 = d^2 / 2, k3 = expm1(d) - d with d = ref - logp."""
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d**2 / 2
    return jnp.expm1(d) - d


def correction_weight(difference: jax.Array, counted: jax.Array, config: GrpoConfig) -> jax.Array:
    """Truncated importance weight from `difference` = learner - rollout log-probability, without gradient."""
    if config.rollout_correction == "none":
        return jnp.ones_like(difference)
    return jnp.minimum(_ratio(difference, counted, config.rollout_correction), config.rollout_correction_cap)


def _clean(values: jax.Array, counted: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if values.shape != counted.shape:
        raise ValueError(f"an array of shape {values.shape} goes with a mask of shape {counted.shape}")
    return jnp.where(counted, jnp.asarray(values, dtype), 0.0)


def _row_mean(values: jax.Array, counted: jax.Array) -> jax.Array:
    means = values.sum(axis=1, keepdims=True, where=counted) / jnp.maximum(1, counted.sum(axis=1, keepdims=True))
    return jnp.broadcast_to(means, values.shape)


def _ratio(log_ratio: jax.Array, counted: jax.Array, level: str) -> jax.Array:
    return jnp.exp(log_ratio if level == "token" else _row_mean(log_ratio, counted))


def _too_far(tokens: Tokens, threshold: float) -> jax.Array:
    return (tokens.advantages < 0) & (_row_mean(-tokens.stopped_log_ratio, tokens.counted) > threshold)


def _is_clipped(tokens: Tokens, config: GrpoConfig) -> jax.Array:
    rule = LOSSES[config.loss].clip
    if rule == "cap":
        return tokens.stopped_ratio > config.epsilon_high
    if rule == "none":
        return jnp.zeros_like(tokens.counted)
    low, high = 1 - config.epsilon_low, 1 + config.epsilon_high
    cap = jnp.inf if config.delta is None else max(config.delta, high)
    ratio = tokens.stopped_ratio
    below = (ratio < low) | (ratio > cap)
    return jnp.where(tokens.advantages < 0, below, (tokens.advantages > 0) & (ratio > high))
