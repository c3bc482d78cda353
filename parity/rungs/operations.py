"""Rung 1: single operations in float32, each against float64 or Transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import creason_jax.learner.loss
import creason_torch.learner.loss
from creason_jax.model import group_attention as jax_attention
from creason_torch.model.attention import group_attention as torch_attention
from parity import reference
from parity.check import NATS, Check, Measured, largest_difference, largest_relative, unequal
from parity.sides import run_config
from parity.world import World
from shared import grpo
from shared.config import GrpoConfig
from shared.grpo import GroupLayout
from shared.randomness import generator

LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo, delta": {"delta": 1.1},
    "grpo, k1": {"kl_estimator": "k1"},
    "grpo, k2": {"kl_estimator": "k2", "kl_in_ratio": True},
    "grpo, sequence ratio": {"ratio_level": "sequence"},
    "gspo": {"loss": "gspo", "ratio_level": "sequence"},
    "luspo": {"loss": "luspo", "ratio_level": "sequence"},
    "dr_grpo": {"loss": "dr_grpo"},
    "bnpo": {"loss": "bnpo", "beta": 0.0},
    "dapo, token correction": {"loss": "dapo", "rollout_correction": "token", "rollout_correction_cap": 1.05},
    "dapo, sequence correction": {"loss": "dapo", "rollout_correction": "sequence"},
    "cispo": {"loss": "cispo", "epsilon_high": 1.05},
    "sapo": {"loss": "sapo"},
    "vespo": {"loss": "vespo"},
    "grpo, off-policy mask": {"off_policy_mask_threshold": 0.01},
}


def checks(world: World) -> Iterator[Check]:
    """Precision, log-softmax, KL of tiny differences, attention, every loss with its gradient."""
    wanted = {"jax": "highest", "torch": "highest"}
    pinned = {"jax": jax.config.values["jax_default_matmul_precision"], "torch": torch.get_float32_matmul_precision()}
    yield Check.of("operations", "precision of float32 products", "all", "highest", unequal(pinned, wanted), 0)
    yield from _log_softmax(world)
    yield from _small_kl(world)
    yield from _attention()
    yield from _losses(world)


def _log_softmax(world: World) -> Iterator[Check]:
    """From the same logits, rounded to bfloat16 as a bfloat16 head gives them."""
    rng = generator(0, "parity", "logits")
    logits = torch.from_numpy(rng.normal(0, 4, (64, 2_048))).bfloat16()
    targets = rng.integers(0, 2_048, 64)
    expected = logits.double().log_softmax(-1)[torch.arange(64), torch.from_numpy(targets)].numpy()
    wide = logits.float()
    jax_side, torch_side = world.sides
    found = {
        "jax": jax_side.target_logprobs(jnp.asarray(wide.numpy()), jnp.asarray(targets)),
        "torch": torch_side.target_logprobs(wide, torch.from_numpy(targets)).numpy(),
    }
    for side, values in found.items():
        measured = largest_difference({"token": values}, {"token": expected}, unit=NATS)
        yield Check.of("operations", f"log-softmax, {side}", "all", "float64", measured, 3e-6)
    yield Check.of(
        "operations", "log-softmax", "all", "torch",
        largest_difference({"token": found["jax"]}, {"token": found["torch"]}, unit=NATS), 3e-6,
    )  # fmt: skip


def _small_kl(world: World) -> Iterator[Check]:
    """k3 of a difference of 1e-4 nats, which exp(d) - 1 - d loses to rounding."""
    d = np.float32(1e-4)
    expected = {"k3": np.expm1(np.float64(d)) - np.float64(d)}
    jax_side, torch_side = world.sides
    found = {
        "jax": jax_side.kl_estimate(jnp.zeros(1), jnp.full(1, d), "k3")[0],
        "torch": torch_side.kl_estimate(torch.zeros(1), torch.full((1,), float(d)), "k3")[0].numpy(),
    }
    for side, value in found.items():
        yield Check.of(
            "operations", f"small KL, {side}", "all", "float64", largest_relative({"k3": value}, expected), 0.02
        )


def _attention() -> Iterator[Check]:
    """Heads in groups, prompts of unequal length, and a row that is padding alone: outputs and gradients."""
    layout = GroupLayout(prompt=9, group=3, completion=5)
    rows, heads, kv_heads, size = 3, 6, 2, 16
    rng = generator(0, "parity", "attention")
    shapes = [(rows, layout.length, count, size) for count in (heads, kv_heads, kv_heads)]
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    valid = np.zeros((rows, layout.length), bool)
    valid[0], valid[1, :6], valid[1, 9:12], valid[1, 14:19] = True, True, True, True
    weights = rng.normal(size=shapes[0]).astype(np.float32) * valid[..., None, None]

    def of_jax(q: Any, k: Any, v: Any) -> Any:
        return (jax_attention(q, k, v, jnp.asarray(valid), layout) * weights).sum()

    tq, tk, tv = (torch.from_numpy(each.swapaxes(1, 2).copy()).requires_grad_() for each in (q, k, v))
    out = torch_attention(tq, tk, tv, torch.from_numpy(valid), layout)
    of_torch = torch.autograd.grad((out * torch.from_numpy(weights)).sum(), (tq, tk, tv))
    found = {
        "jax": [np.asarray(each) for each in jax.grad(of_jax, (0, 1, 2))(*map(jnp.asarray, (q, k, v)))],
        "torch": [each.numpy().swapaxes(1, 2) for each in of_torch],
    }
    exact = _exact_attention(q, k, v, valid, layout, weights)
    for side, gradients in found.items():
        measured = largest_difference(dict(zip("qkv", gradients)), dict(zip("qkv", exact)))
        yield Check.of("operations", f"gradient of attention, {side}", "all", "float64", measured, 1e-5)


def _exact_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, valid: np.ndarray, layout: GroupLayout, weights: np.ndarray
) -> list[np.ndarray]:
    """The same gradients from one `[T, T]` mask in float64, row by row, padding left out."""
    segment = np.maximum(0, (np.arange(layout.length) - layout.prompt) // layout.completion + 1)
    found = [np.zeros(each.shape) for each in (q, k, v)]
    for row in range(len(q)):
        places = np.flatnonzero(valid[row])
        if not len(places):
            continue
        own = [torch.from_numpy(each[row, places]).double().requires_grad_() for each in (q, k, v)]
        of = torch.from_numpy(segment[places])
        order = torch.arange(len(places))
        seen = (order[None] <= order[:, None]) & ((of[None] == 0) | (of[None] == of[:, None]))
        heads = [each.transpose(0, 1) for each in own]
        keys, values = (each.repeat_interleave(q.shape[2] // k.shape[2], 0) for each in heads[1:])
        scores = (heads[0] @ keys.mT) * q.shape[-1] ** -0.5
        out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
        (out.transpose(0, 1) * torch.from_numpy(weights[row, places]).double()).sum().backward()
        for whole, part in zip(found, own):
            assert part.grad is not None
            whole[row, places] = part.grad.numpy()
    return found


def _losses(world: World) -> Iterator[Check]:
    """Every loss and option: value, counts and the gradient of each log-probability, float32."""
    batch = world.case().batch()
    with torch.no_grad():
        scored = reference.logprobs(world.case().network, batch).numpy()
    for name, options in LOSSES.items():
        config = run_config(grpo=options)
        expected = {"loss": reference.objective(scored, batch, config).loss / reference.divisor(batch, config)}
        stops = config.grpo.loss in ("cispo", "vespo") or config.grpo.off_policy_mask_threshold is not None
        gradients = {}
        for side, objective in (("jax", _jax_objective), ("torch", _torch_objective)):
            value, gradients[side] = objective(scored, batch, config.grpo, reference.divisor(batch, config))
            measured = largest_relative({"loss": value}, expected, sizes=reference.sizes(batch))
            yield Check.of("operations", f"loss {name}, {side}", "all", "float64", measured, 1e-6)
        if not stops:  # central differences see no stopped gradient
            gradient = {"token": reference.objective_gradient(scored, batch, config)}
            for side, found in gradients.items():
                measured = _over_norm(found, gradient["token"])
                yield Check.of("operations", f"gradient of loss {name}, {side}", "all", "float64", measured, 1e-5)
        yield Check.of(
            "operations", f"gradient of loss {name}", "all", "torch", _over_norm(gradients["jax"], gradients["torch"]), 1e-5
        )  # fmt: skip


def _over_norm(found: np.ndarray, expected: np.ndarray) -> Measured:
    """The largest difference of a token's gradient, relative to the largest of all tokens."""
    size = float(np.abs(expected).max())
    return largest_difference({"token": found / size}, {"token": expected / size}, unit="of the largest")


def _jax_objective(scored: np.ndarray, batch: Any, config: GrpoConfig, divisor: float) -> tuple[Any, np.ndarray]:
    view = {name: jnp.asarray(value) for name, value in reference.completions(batch).items()}
    rows = jnp.asarray(grpo.real_completions(batch.groups, batch.layout))

    def loss(values: jax.Array) -> jax.Array:
        sums = creason_jax.learner.loss.objective(
            values, view["advantages"], view["completion_mask"], config, row_mask=rows, **_optional(view)
        )
        return sums.loss / divisor

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(scored, jnp.float32))
    return value, np.asarray(gradient)


def _torch_objective(scored: np.ndarray, batch: Any, config: GrpoConfig, divisor: float) -> tuple[Any, np.ndarray]:
    view = {name: torch.from_numpy(value.copy()) for name, value in reference.completions(batch).items()}
    rows = torch.from_numpy(grpo.real_completions(batch.groups, batch.layout))
    values = torch.from_numpy(scored).float().requires_grad_()
    sums = creason_torch.learner.loss.objective(
        values, view["advantages"], view["completion_mask"], config, row_mask=rows, **_optional(view)
    )
    (sums.loss / divisor).backward()
    assert values.grad is not None
    return (sums.loss / divisor).item(), values.grad.numpy()


def _optional(view: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in view.items() if name.endswith("_logprobs")}
