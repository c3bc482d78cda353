"""Faults to put into the JAX side on purpose: what a parity suite is worth is how it reports these.

Each fault is a mistake that a framework or a port has really made. `rung` is the lowest rung that must see it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import creason_jax.checkpoint.zarr
import creason_jax.learner.learner
import creason_jax.learner.loss
import creason_jax.model.logprobs
import creason_jax.rollout.decoding
import shared.grpo
from shared.errors import InputError

Patch = tuple[Any, str, Any]  # an object, an attribute of it, and what stands there while the fault is in


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong, the lowest rung that must fail, and the patches that make it so."""

    what: str
    rung: str
    patches: Callable[[], list[Patch]]


@contextlib.contextmanager
def injected(name: str) -> Iterator[None]:
    """The fault `name` is in while the block runs; nothing for "". Raises InputError for an unknown name."""
    if name and name not in FAULTS:
        raise InputError(f"--inject={name}: unknown fault; there are {', '.join(FAULTS)}")
    with contextlib.ExitStack() as stack:
        if name:
            # Programs are shared by all engines that ask for the same: none from before a fault, and none with it after.
            jax.clear_caches()
            stack.callback(jax.clear_caches)
        for patch in FAULTS[name].patches() if name else []:
            stack.enter_context(mock.patch.object(*patch))
        yield


def _ddof_0() -> list[Patch]:
    def advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
        rewards = np.asarray(rewards, np.float64)
        return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)

    return [(shared.grpo, "advantages", advantages)]


def _uncounted_eos() -> list[Patch]:
    plain = shared.grpo.completion_masks

    def masks(completions: Any, truncated: Any, *, mask_truncated: bool) -> Any:
        found = plain(completions, truncated, mask_truncated=mask_truncated)
        for group in found:
            for mask in group:
                mask[-1] = 0.0
        return found

    return [(shared.grpo, "completion_masks", masks)]


def _bf16_log_softmax() -> list[Patch]:
    def target_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
        rounded = jax.nn.log_softmax(logits.astype(jnp.bfloat16))
        return jnp.take_along_axis(rounded, targets[..., None], -1)[..., 0].astype(jnp.float32)

    return [(creason_jax.model.logprobs, "target_logprobs", target_logprobs)]


def _naive_kl() -> list[Patch]:
    def kl_estimate(logprobs: jax.Array, ref_logprobs: jax.Array, estimator: str) -> jax.Array:
        d = ref_logprobs - logprobs
        return jnp.exp(d) - 1 - d

    return [(creason_jax.learner.loss, "kl_estimate", kl_estimate)]


def _layer_swapped() -> list[Patch]:
    plain = creason_jax.learner.learner.load_params

    def load_params(*arguments: Any, **options: Any) -> Any:
        params = plain(*arguments, **options)
        swapped = jax.tree.map(lambda leaf: jax.device_put(jnp.flip(leaf, 0), leaf.sharding), params["layers"])
        return {**params, "layers": swapped}

    return [(creason_jax.learner.learner, "load_params", load_params)]


def _shift_by_one() -> list[Patch]:
    plain = creason_jax.learner.learner.token_logprobs

    def token_logprobs(hidden: Any, head: Any, targets: jax.Array, **options: Any) -> Any:
        return plain(hidden, head, jnp.roll(targets, 1, axis=1), **options)

    return [(creason_jax.learner.learner, "token_logprobs", token_logprobs)]


def _padding_seen() -> list[Patch]:
    plain = creason_jax.learner.learner.group_attention

    def group_attention(q: Any, k: Any, v: Any, valid: jax.Array, layout: Any, **options: Any) -> jax.Array:
        return plain(q, k, v, jnp.ones_like(valid), layout, **options)

    return [(creason_jax.learner.learner, "group_attention", group_attention)]


def _frozen_pad_row() -> list[Patch]:
    plain = creason_jax.learner.learner.forward

    def forward(params: Any, model: Any, tokens: jax.Array, *arguments: Any, **options: Any) -> Any:
        table = params["embed"]["kernel"]
        pad = (jnp.arange(len(table)) == 0)[:, None]
        frozen = jnp.where(pad, jax.lax.stop_gradient(table), table)
        return plain({**params, "embed": {"kernel": frozen}}, model, tokens, *arguments, **options)

    return [(creason_jax.learner.learner, "forward", forward)]


def _eps_inside_root() -> list[Patch]:
    def adam(learner: Any) -> optax.GradientTransformation:
        settings = learner.optimizer
        return optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=0.0, eps_root=settings.eps**2)

    return [(creason_jax.learner.learner.Learner, "_adam", adam)]


def _rate_off_by_one() -> list[Patch]:
    plain = creason_jax.learner.learner.learning_rate
    return [(creason_jax.learner.learner, "learning_rate", lambda step, *rest: plain(step + 1, *rest))]


def _stale_reference() -> list[Patch]:
    return [(creason_jax.learner.learner.Learner, "sync_reference", lambda learner: None)]


def _mean_of_means() -> list[Patch]:
    """Each micro-batch divides by its own count of tokens, and the micro-batches are averaged."""
    plain = creason_jax.learner.learner.Learner.update
    count = [1]

    def objective(*arguments: Any, **options: Any) -> Any:
        sums = creason_jax.learner.loss.objective(*arguments, **options)
        return sums._replace(loss=sums.loss / jnp.maximum(1.0, sums.tokens))

    def update(learner: Any, batch: Any) -> dict[str, float]:
        count[0] = learner.micro_batches(batch.tokens.shape[0])[0]
        return plain(learner, batch)

    loss = types.SimpleNamespace(objective=objective, add=creason_jax.learner.loss.add)
    grpo = types.SimpleNamespace(counts=shared.grpo.counts, denominator=lambda *_: count[0])
    learner = creason_jax.learner.learner
    return [(learner, "loss", loss), (learner, "grpo", grpo), (learner.Learner, "update", update)]


def _bf16_masters() -> list[Patch]:
    plain = creason_jax.learner.learner.Learner.update

    def update(learner: Any, batch: Any) -> dict[str, float]:
        metrics = plain(learner, batch)
        rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), learner.state.params)
        learner.state = learner.state._replace(params=rounded)
        return metrics

    return [(creason_jax.learner.learner.Learner, "update", update)]


def _previous_key_unseen() -> list[Patch]:
    plain: Any = creason_jax.rollout.decoding.decode_attention

    def decode_attention(*arrays: jax.Array) -> jax.Array:
        *others, there = arrays
        newest = there.sum(axis=1, keepdims=True) - 1  # of slots that began together
        return plain(*others, there & (jnp.arange(there.shape[1]) != newest))

    return [(creason_jax.rollout.decoding, "decode_attention", decode_attention)]


def _lost_moments() -> list[Patch]:
    plain = creason_jax.checkpoint.zarr.ZarrArrays.state

    def state(arrays: Any, target: Any, model: Any) -> Any:
        found = plain(arrays, target, model)
        return found._replace(moments=jax.tree.map(jnp.zeros_like, found.moments))

    return [(creason_jax.checkpoint.zarr.ZarrArrays, "state", state)]


def _stale_engine() -> list[Patch]:
    plain = creason_jax.learner.learner.Learner.publish

    def publish(learner: Any, engine: Any) -> None:
        if engine.params is None:
            plain(learner, engine)

    return [(creason_jax.learner.learner.Learner, "publish", publish)]


FAULTS: dict[str, Fault] = {
    "ddof_0": Fault("standard deviation of a group with G in the denominator", "contract", _ddof_0),
    "uncounted_eos": Fault("the token that ends a completion does not count", "contract", _uncounted_eos),
    "bf16_log_softmax": Fault("log-softmax in bfloat16", "operations", _bf16_log_softmax),
    "naive_kl": Fault("KL as exp(d) - 1 - d", "operations", _naive_kl),
    "layer_swapped": Fault("layers loaded in reverse order", "scoring", _layer_swapped),
    "shift_by_one": Fault("tokens scored by the state of another position", "scoring", _shift_by_one),
    "padding_seen": Fault("padding of prompts takes part in attention", "scoring", _padding_seen),
    "frozen_pad_row": Fault("the embedding of the pad token gets no gradient", "gradients", _frozen_pad_row),
    "eps_inside_root": Fault("Adam's epsilon inside the square root", "optimizer", _eps_inside_root),
    "rate_off_by_one": Fault("the schedule is one step ahead", "updates", _rate_off_by_one),
    "stale_reference": Fault("the reference policy is never mixed", "reference", _stale_reference),
    "bf16_masters": Fault("weights kept in bfloat16", "precision", _bf16_masters),
    "mean_of_means": Fault("a mean of micro-batches' means", "invariance", _mean_of_means),
    "previous_key_unseen": Fault(
        "a token does not attend to the one before it in decoding", "generation", _previous_key_unseen
    ),
    "stale_engine": Fault("new weights do not reach the engine", "publishing", _stale_engine),
    "lost_moments": Fault("Adam's moments do not come along to the other backend", "exchange", _lost_moments),
}
