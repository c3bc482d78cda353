"""Faults to put into the JAX side on purpose: what a parity suite is worth is how it reports these.

Each fault is a mistake that a framework or a port has really made. It stands in a part of its own, which takes the place of the
right one in what a run checks (`parity.sides.Subject`): a function, or a learner or an engine with one method changed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from creason_jax.learner.learner import Learner, State
from creason_jax.model import decode_attention
from creason_jax.rollout.engine import Engine
from parity.sides import JaxSide, Subject
from shared import grpo
from shared.errors import InputError
from shared.grpo import GroupBatch, GroupLayout


class Fault(NamedTuple):
    """What is wrong, the lowest rung that must see it, and what is checked with the fault in it."""

    what: str
    rung: str
    subject: Subject


def fault(name: str) -> Fault:
    """The fault `name`. Raises InputError for one that is not known."""
    if name not in FAULTS:
        raise InputError(f"--inject={name}: unknown fault; there are {', '.join(FAULTS)}")
    return FAULTS[name]


def advantages_with_ddof_0(rewards: np.ndarray, scale: str) -> np.ndarray:
    """Advantages `[questions, G]` in the standard deviation with G in its denominator."""
    rewards = np.asarray(rewards, np.float64)
    return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)


def masks_without_eos(completions: Any, truncated: Any, *, mask_truncated: bool) -> Any:
    """Masks of completions, each without its last token."""
    masks = grpo.completion_masks(completions, truncated, mask_truncated=mask_truncated)
    for group in masks:
        for mask in group:
            mask[-1] = 0.0
    return masks


def bfloat16_log_softmax(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probabilities of the targets, rounded to bfloat16 before the softmax."""
    rounded = jax.nn.log_softmax(logits.astype(jnp.bfloat16))
    return jnp.take_along_axis(rounded, targets[..., None], -1)[..., 0].astype(jnp.float32)


def naive_kl(logprobs: jax.Array, ref_logprobs: jax.Array, estimator: str) -> jax.Array:
    """The estimator k3 without `expm1`: a small difference is lost in rounding."""
    d = ref_logprobs - logprobs
    return jnp.exp(d) - 1 - d


class LayersSwapped(Learner):
    """Has its layers in reverse order."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        params = self.state.params
        layers = jax.tree.map(lambda leaf: jax.device_put(jnp.flip(leaf, 0), leaf.sharding), params["layers"])
        self.state = self.state._replace(params={**params, "layers": layers})


class ShiftedByOne(Learner):
    """Scores a token by the state at the token itself, which has read it."""

    def _states_before(self, hidden: jax.Array, valid: jax.Array, layout: GroupLayout) -> jax.Array:
        return hidden[:, layout.prompt :]


class PaddingSeen(Learner):
    """Lets padding take part in attention."""

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, *, valid: jax.Array, layout: GroupLayout
    ) -> tuple[jax.Array, None]:
        return super()._attend(q, k, v, valid=jnp.ones_like(valid), layout=layout)


class FrozenPadRow(Learner):
    """Gives the embedding of the pad token, row 0, no gradient."""

    def _own_logprobs(
        self, params: Any, rows: dict[str, jax.Array], layout: GroupLayout
    ) -> tuple[jax.Array, jax.Array]:
        table = params["embed"]["kernel"]
        pad = (jnp.arange(len(table)) == 0)[:, None]
        frozen = jnp.where(pad, jax.lax.stop_gradient(table), table)
        return super()._own_logprobs({**params, "embed": {"kernel": frozen}}, rows, layout)


class EpsilonInsideRoot(Learner):
    """Adds Adam's epsilon inside the square root."""

    def _adam(self) -> optax.GradientTransformation:
        settings = self.optimizer
        return optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=0.0, eps_root=settings.eps**2)


class RateOffByOne(Learner):
    """Takes the learning rate of the next step."""

    def update(self, batch: GroupBatch) -> dict[str, float]:
        """See `shared.backend.Learner`."""
        self.step += 1
        metrics = super().update(batch)
        self.step -= 1
        return metrics


class StaleReference(Learner):
    """Never mixes the reference policy."""

    def sync_reference(self) -> None:
        """See `shared.backend.Learner`."""


class BFloat16Masters(Learner):
    """Keeps its weights in bfloat16."""

    def update(self, batch: GroupBatch) -> dict[str, float]:
        """See `shared.backend.Learner`."""
        metrics = super().update(batch)
        rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), self.state.params)
        self.state = self.state._replace(params=rounded)
        return metrics


class MeanOfMeans(Learner):
    """Divides each micro-batch by its own count of tokens, and takes the mean over micro-batches."""

    def _micro_loss(self, params: Any, rows: dict[str, jax.Array], layout: GroupLayout) -> Any:
        loss, (sums, extra) = super()._micro_loss(params, rows, layout)
        return loss / jnp.maximum(1.0, sums.tokens), (sums, extra)

    def _update_step(
        self, state: State, batch: dict[str, jax.Array], divisor: jax.Array, rate: jax.Array, layout: GroupLayout
    ) -> Any:
        micro_batches = jnp.float32(len(batch["tokens"]))
        return super()._update_step(state, batch, micro_batches, rate, layout)


class LostMoments(Learner):
    """Restores a checkpoint without Adam's moments."""

    def restore(self, folder: Path | str, step: int | None = None) -> tuple[int, dict[str, int]] | None:
        """See `shared.backend.Learner`."""
        restored = super().restore(folder, step)
        self.state = self.state._replace(moments=jax.tree.map(jnp.zeros_like, self.state.moments))
        return restored


class NeverPublishedAgain(Learner):
    """Brings an engine its first weights and no later ones."""

    def publish(self, engine: Engine) -> None:
        """See `shared.backend.Learner`."""
        if engine.params is None:
            super().publish(engine)


def attention_without_newest(*arrays: jax.Array) -> jax.Array:
    """Attention in decoding that leaves out the newest of the keys in a sample's cache."""
    *others, there = arrays
    newest = there.sum(axis=1, keepdims=True) - 1  # of slots that began together
    return decode_attention(*others, there & (jnp.arange(there.shape[1]) != newest))  # type: ignore[call-arg]


class PreviousKeyUnseen(Engine):
    """Decodes without the key of the token before."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.program = dataclasses.replace(self.program, attention=attention_without_newest)


def _learning_with(learner_class: type[Learner]) -> Subject:
    return Subject(jax=JaxSide(learner_class=learner_class))


FAULTS: dict[str, Fault] = {
    "ddof_0": Fault(
        "standard deviation of a group with G in the denominator",
        "contract",
        Subject(advantages=advantages_with_ddof_0),
    ),
    "uncounted_eos": Fault(
        "the token that ends a completion does not count", "contract", Subject(completion_masks=masks_without_eos)
    ),
    "bf16_log_softmax": Fault(
        "log-softmax in bfloat16", "operations", Subject(jax=JaxSide(target_logprobs=bfloat16_log_softmax))
    ),
    "naive_kl": Fault("KL as exp(d) - 1 - d", "operations", Subject(jax=JaxSide(kl_estimate=naive_kl))),
    "layer_swapped": Fault("layers loaded in reverse order", "scoring", _learning_with(LayersSwapped)),
    "shift_by_one": Fault("tokens scored by the state of another position", "scoring", _learning_with(ShiftedByOne)),
    "padding_seen": Fault("padding of prompts takes part in attention", "scoring", _learning_with(PaddingSeen)),
    "frozen_pad_row": Fault(
        "the embedding of the pad token gets no gradient", "gradients", _learning_with(FrozenPadRow)
    ),
    "eps_inside_root": Fault("Adam's epsilon inside the square root", "optimizer", _learning_with(EpsilonInsideRoot)),
    "rate_off_by_one": Fault("the schedule is one step ahead", "updates", _learning_with(RateOffByOne)),
    "stale_reference": Fault("the reference policy is never mixed", "reference", _learning_with(StaleReference)),
    "bf16_masters": Fault("weights kept in bfloat16", "precision", _learning_with(BFloat16Masters)),
    "mean_of_means": Fault("a mean of micro-batches' means", "invariance", _learning_with(MeanOfMeans)),
    "previous_key_unseen": Fault(
        "a token does not attend to the one before it in decoding",
        "generation",
        Subject(jax=JaxSide(engine_class=PreviousKeyUnseen)),
    ),
    "stale_engine": Fault("new weights do not reach the engine", "publishing", _learning_with(NeverPublishedAgain)),
    "lost_moments": Fault(
        "Adam's moments do not come along to the other backend", "exchange", _learning_with(LostMoments)
    ),
}
