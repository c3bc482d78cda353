"""The learner: sharded weights, optimizer state and reference policy; the update with gradient accumulation; in `jax.jit`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from creason_jax import distributed, private_jax
from creason_jax.axes import TENSOR
from creason_jax.checkpoint.checkpoint import Checkpoints
from creason_jax.learner import loss, moments, own_rows
from creason_jax.mesh import sharding
from creason_jax.model import (
    DecoderConfig,
    abstract_params,
    forward,
    gather_params,
    group_attention,
    head,
    load_params,
    platform_of,
    save_params,
)
from creason_jax.model.logprobs import token_logprobs
from creason_jax.rollout import readback
from creason_jax.rollout.engine import Engine
from shared import grpo
from shared.backend import Probe, check_tokens, scoring_temperature
from shared.config import OptimizerConfig, RunConfig
from shared.grpo import (
    ARRAYS,
    OPTIONAL_ARRAYS,
    GroupBatch,
    GroupLayout,
    Sums,
    completion_view,
    from_completion_view,
    metrics,
    pad_rows,
    real_completions,
)
from shared.grpo.schedule import learning_rate
from shared.policy import weight_files
from shared.storage import files

INTEGER_ARRAYS = ("tokens", "positions", "groups")


class State(NamedTuple):
    """Everything that training changes.

    `params` (the master weights) and `reference` are float32; `moments` have `jax.moments_dtype`. `reference` is None where
    the run has no reference policy (beta = 0). `step` is the number of updates."""

    params: Any
    moments: Any
    reference: Any
    step: Any


class Learner:
    """Twin of the PyTorch learner; see `shared.backend.Learner` for the contract."""

    def __init__(
        self,
        config: RunConfig,
        model: Path | DecoderConfig,
        mesh: jax.sharding.Mesh,
        *,
        optimizer: OptimizerConfig,
        steps: int,
        reference: bool,
    ):
        """`model` is a model directory. A shape alone makes a learner to compile and not to run: its state is shapes and
        shardings, for devices that this machine may lack."""
        self.config = config
        self.optimizer = optimizer
        self.steps = steps
        self.mesh = mesh
        self.model = (
            model if isinstance(model, DecoderConfig) else DecoderConfig.read(model, longest=config.longest_sequence)
        )
        sharding.check_divisible(self.model, mesh)
        self.shardings = sharding.param_shardings(self.model, mesh)
        self.reference_on_host = config.jax.reference_memory == "host"
        self.reference_shardings = sharding.on_host(self.shardings) if self.reference_on_host else self.shardings
        self.whole = sharding.replicated(mesh)
        self.step = 0
        self._checkpoints: Checkpoints | None = None
        adam = optax.ScaleByAdamState(count=self.whole, mu=self.shardings, nu=self.shardings)
        # An update returns the state with the shardings that it had before, so the second call uses the same compiled program.
        self._same = State(self.shardings, adam, self.reference_shardings if reference else None, self.whole)
        changed = self._same._replace(reference=None)
        self._update = jax.jit(
            self._update_step, static_argnames="layout", donate_argnums=0, out_shardings=(changed, self.whole)
        )
        self._score = jax.jit(self._score_rows, static_argnames=("layout", "from_host"))
        self._mix = jax.jit(self._mixed, donate_argnums=0, out_shardings=self.reference_shardings)
        if isinstance(model, DecoderConfig):
            self.state = self._abstract_state(reference)
        else:
            self.model_folder = model
            self.state = self._first_state(model, reference)

    def logprobs(self, batch: GroupBatch, which: Literal["policy", "reference"]) -> np.ndarray:
        """See `shared.backend.Learner`."""
        check_tokens(batch.tokens[batch.groups >= 0], "batch", self.model.vocab_size)
        params = self.state.params if which == "policy" else self.state.reference
        rows = batch.tokens.shape[0]
        arrays = self._micro_batches(batch, ARRAYS)
        from_host = which == "reference" and self.reference_on_host
        scored = distributed.fetch(self._score(params, arrays, layout=batch.layout, from_host=from_host))
        flat = scored.reshape(-1, batch.layout.completion)
        whole = from_completion_view(flat, batch.layout)[:rows].astype(np.float32)
        return np.where(batch.completion_mask > 0, whole, np.float32(0))

    def update(self, batch: GroupBatch) -> dict[str, float]:
        """See `shared.backend.Learner`. Raises InputError if a background save has failed: a longer run would be lost too."""
        if self._checkpoints is not None:
            self._checkpoints.check()
        check_tokens(batch.tokens[batch.groups >= 0], "batch", self.model.vocab_size)
        names = ARRAYS + tuple(name for name in OPTIONAL_ARRAYS if getattr(batch, name) is not None)
        longest = self.config.rollout.max_new_tokens
        divisor = grpo.denominator(grpo.counts(batch), self.config.grpo, longest)
        arrays = self._micro_batches(batch, names)
        rate = learning_rate(self.step, self.optimizer, self.steps)
        scalars = self._scalar(divisor), self._scalar(rate)
        # The reference is not an argument of the update, so its memory (device or host) does not matter to it.
        reference = self.state.reference
        state, results = self._update(self.state._replace(reference=None), arrays, *scalars, layout=batch.layout)
        self.state = state._replace(reference=reference)
        self.step += 1
        sums, extra = jax.device_get(results)
        entropy, logprob, norm = (float(extra[name]) for name in ("entropy", "logprob", "grad_norm"))
        described = metrics(sums, self.config.grpo, longest, entropy=entropy, logprob=logprob)
        return {**described, "grad_norm": norm, "learning_rate": rate}

    def sync_reference(self) -> None:
        """See `shared.backend.Learner`."""
        if self.state.reference is not None:
            mixed = self._mix(self.state.reference, self.state.params, self._scalar(self.config.grpo.ref_mixup))
            self.state = self.state._replace(reference=mixed)

    def publish(self, engine: Engine) -> None:
        """See `shared.backend.Learner`."""
        engine.load(self.state.params, version=self.step)

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """See `shared.backend.Learner`."""
        return readback.digests(self.state.params, probes, self.config.learner.compute_dtype, self.mesh)

    def save(self, folder: Path | str, step: int, extra: Mapping[str, int]) -> None:
        """See `shared.backend.Learner`."""
        self._manager(folder).save(step, self.state, dict(extra))

    def restore(self, folder: Path | str, step: int | None = None) -> tuple[int, dict[str, int]] | None:
        """See `shared.backend.Learner`."""
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), self.state
        )
        restored = self._manager(folder).restore(target, step, self.model)
        if restored is None:
            return None
        self.state, at, extra = restored
        self.step = int(jax.device_get(self.state.step))
        return at, extra

    def finish_saves(self) -> None:
        """See `shared.backend.Learner`."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def export(self, folder: Path) -> None:
        """See `shared.backend.Learner`."""
        if jax.process_index() > 0:
            gather_params(self.state.params, self.model)
        else:
            with files.replacing(folder) as temporary:
                temporary.mkdir()
                save_params(temporary, self.state.params, self.model)
                weight_files.copy_config_and_tokenizer(self.model_folder, temporary)
        distributed.barrier()

    def compiled_updates(self) -> int:
        """How many times the update was compiled: 1 in a run with one layout."""
        return private_jax.compiled_versions(self._update)

    def lower_update(self, layout: GroupLayout, rows: int) -> Any:
        """The lowered update for a batch of `rows` rows with the arrays that training gives it; for its HLO text and memory."""
        present = {
            "rollout_logprobs": True,
            "old_logprobs": self.config.grpo.inner_steps > 1,
            "ref_logprobs": self.config.grpo.beta > 0,
        }
        names = ARRAYS + tuple(name for name in OPTIONAL_ARRAYS if present[name])
        scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=self.whole)
        batch = self._abstract_batch(layout, rows, names)
        traced = self._update.trace(self.state._replace(reference=None), batch, scalar, scalar, layout=layout)
        return traced.lower(lowering_platforms=(platform_of(self.mesh),))

    def lower_scoring(self, layout: GroupLayout, rows: int) -> Any:
        """The lowered scoring of a batch of `rows` rows: with the reference if it is in host memory, else with the policy."""
        batch = self._abstract_batch(layout, rows, ARRAYS)
        from_host = self.reference_on_host and self.state.reference is not None
        params = self.state.reference if from_host else self.state.params
        traced = self._score.trace(params, batch, layout=layout, from_host=from_host)
        return traced.lower(lowering_platforms=(platform_of(self.mesh),))

    def micro_batches(self, rows: int) -> tuple[int, int]:
        """The number of micro-batches of a batch of `rows` rows, and the rows of each: a multiple of the parts of the mesh."""
        ways = sharding.batch_ways(self.mesh)
        width = -(-self.config.learner.micro_batch_rows // ways) * ways
        width = min(width, -(-rows // ways) * ways)
        return -(-rows // width), width

    def _first_state(self, folder: Path, reference: bool) -> State:
        """The weights in `folder`, moments of 0, and a copy of the weights as the reference policy."""
        params = load_params(folder, self.model, self.shardings)
        zeros = jax.jit(self._zero_moments, out_shardings=self._same.moments)(params)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=self.reference_shardings)
        return State(params, zeros, copy(params) if reference else None, distributed.place(np.int32(0), self.whole))

    def _abstract_state(self, reference: bool) -> State:
        """The shapes of the state with their shardings."""
        params = abstract_params(self.model)
        zeros = jax.eval_shape(self._zero_moments, params)
        state = State(params, zeros, params if reference else None, jax.ShapeDtypeStruct((), jnp.int32))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, self._same
        )

    def _abstract_batch(self, layout: GroupLayout, rows: int, names: tuple[str, ...]) -> dict[str, Any]:
        count, width = self.micro_batches(rows)
        split = sharding.batch_sharding(self.mesh, leading=1)

        def shape_of(name: str) -> jax.ShapeDtypeStruct:
            dtype = jnp.int32 if name in INTEGER_ARRAYS else jnp.float32
            return jax.ShapeDtypeStruct((count, width, layout.length), dtype, sharding=split)

        return {name: shape_of(name) for name in names}

    def _manager(self, folder: Path | str) -> Checkpoints:
        if self._checkpoints is None or self._checkpoints.folder != folder:
            self._checkpoints = Checkpoints(folder, keep=self.config.checkpoint.keep)
        return self._checkpoints

    def _scalar(self, value: float) -> jax.Array:
        return distributed.place(np.float32(value), self.whole)

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.optimizer.b1, b2=self.optimizer.b2, eps=self.optimizer.eps)

    def _zero_moments(self, params: Any) -> optax.ScaleByAdamState:
        return moments.cast(self._adam().init(params), self.config.jax.moments_dtype)

    def _micro_batches(self, batch: GroupBatch, names: tuple[str, ...]) -> dict[str, jax.Array]:
        """The batch's arrays as `[micro-batches, rows, time]`; empty rows fill up the last micro-batch."""
        count, width = self.micro_batches(batch.tokens.shape[0])
        batch = pad_rows(batch, count * width)
        split = sharding.batch_sharding(self.mesh, leading=1)
        return {
            name: distributed.place(getattr(batch, name).reshape(-1, width, batch.layout.length), split)
            for name in names
        }

    def _completion_logprobs(
        self, params: Any, rows: dict[str, jax.Array], layout: GroupLayout
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability and entropy of every completion token, both `[rows * G, C]` float32."""
        needed = {name: rows[name] for name in ("tokens", "positions", "groups")}
        own = functools.partial(self._own_logprobs, layout=layout)
        logprobs, entropies = own_rows.by_device(own, self.mesh, self.shardings)(params, needed)
        return logprobs.reshape(-1, layout.completion), entropies.reshape(-1, layout.completion)

    def _own_logprobs(
        self, params: Any, rows: dict[str, jax.Array], layout: GroupLayout
    ) -> tuple[jax.Array, jax.Array]:
        """As `_completion_logprobs`, for a device's own rows; both `[rows, G * C]`."""
        valid = rows["groups"] >= 0
        time = sharding.stream_axis(self.mesh, layout.length, self.config.jax.sequence_parallel)
        hidden, _ = forward(
            params,
            self.model,
            rows["tokens"],
            rows["positions"],
            functools.partial(self._attend, valid=valid, layout=layout),
            dtype=jnp.dtype(self.config.learner.compute_dtype),
            remat=self.config.learner.remat,
            spread=own_rows.spread(self.mesh, self.shardings, time),
        )
        before = self._states_before(hidden, valid, layout)
        name = "embed" if self.model.tie_word_embeddings else "head"
        # The all-gather is here, so it happens once: inside the scan over chunks it would happen in each chunk.
        split = jax.tree.map(lambda leaf: leaf.astype(hidden.dtype), params[name])
        output = head({name: own_rows.gathered(split, self.shardings[name])})
        return token_logprobs(
            before,
            own_rows.laid_out(output, self.mesh, (None, TENSOR)),
            rows["tokens"][:, layout.prompt :],
            chunk=self.config.learner.logprob_chunk,
            temperature=scoring_temperature(self.config.grpo, self.config.rollout.temperature),
        )

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, *, valid: jax.Array, layout: GroupLayout
    ) -> tuple[jax.Array, None]:
        """Attention in a layer; positions that are not `valid` `[rows, time]` are padding."""
        return group_attention(q, k, v, valid, layout, mesh=self.mesh), None

    def _states_before(self, hidden: jax.Array, valid: jax.Array, layout: GroupLayout) -> jax.Array:
        """Of hidden states `[rows, time, model]` those that score the completions' tokens, `[rows, G * C, model]`."""
        batch, _, width = hidden.shape
        last = jnp.maximum(valid[:, : layout.prompt].sum(axis=1) - 1, 0)
        first = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, None]
        first = jnp.broadcast_to(first, (batch, layout.group, 1, width))
        own = hidden[:, layout.prompt :].reshape(batch, layout.group, layout.completion, width)
        # The token at c is scored by the state at c - 1, the first one by the prompt's last state.
        return jnp.concatenate([first, own[:, :, :-1]], axis=2).reshape(batch, -1, width)

    def _score_rows(self, params: Any, batch: dict[str, jax.Array], layout: GroupLayout, from_host: bool) -> jax.Array:
        if from_host:
            # The whole reference is copied once, not layer by layer in each micro-batch: there is memory for it, because no
            # gradients exist during scoring.
            params = jax.device_put(params, self.shardings)

        def logprobs_of(rows: dict[str, jax.Array]) -> jax.Array:
            return self._completion_logprobs(params, rows, layout)[0]

        return jax.lax.map(logprobs_of, batch)

    def _micro_loss(
        self, params: Any, rows: dict[str, jax.Array], layout: GroupLayout
    ) -> tuple[jax.Array, tuple[Sums, dict[str, jax.Array]]]:
        logprobs, entropies = self._completion_logprobs(params, rows, layout)
        view = {name: completion_view(values, layout) for name, values in rows.items()}
        mask = view["completion_mask"]
        sums = loss.objective(
            logprobs,
            view["advantages"],
            mask,
            self.config.grpo,
            row_mask=real_completions(rows["groups"], layout),
            old_logprobs=view.get("old_logprobs"),
            ref_logprobs=view.get("ref_logprobs"),
            rollout_logprobs=view.get("rollout_logprobs"),
        )
        extra = {
            "entropy": jnp.sum(jnp.where(mask > 0, entropies, 0.0)),
            "logprob": jnp.sum(jnp.where(mask > 0, jax.lax.stop_gradient(logprobs), 0.0)),
        }
        return sums.loss, (sums, extra)

    def _update_step(
        self, state: State, batch: dict[str, jax.Array], divisor: jax.Array, rate: jax.Array, layout: GroupLayout
    ) -> tuple[State, tuple[Sums, dict[str, jax.Array]]]:
        """One optimizer step: gradients summed over micro-batches, divided once by the whole batch's count."""
        gradient = jax.grad(functools.partial(self._micro_loss, layout=layout), has_aux=True)

        def add(total: Any, rows: dict[str, jax.Array]) -> tuple[Any, None]:
            # The barrier keeps the gradients' sum over devices inside the loop. Without it the TPU compiler tries to move the sum
            # behind the loop (and fails with an internal error in bfloat16): then every device would hold whole gradients.
            grads, aux = jax.lax.optimization_barrier(gradient(state.params, rows))
            gradients, (sums, extra) = total
            added = (loss.add(sums, aux[0]), jax.tree.map(jnp.add, extra, aux[1]))
            return (jax.tree.map(jnp.add, gradients, grads), added), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        rows = jax.tree.map(lambda leaf: leaf[0], batch)
        no_sums = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(functools.partial(self._micro_loss, layout=layout), state.params, rows)[1],
        )
        (grads, (sums, extra)), _ = jax.lax.scan(add, (zeros, no_sums), batch)
        grads = jax.tree.map(lambda leaf: leaf / divisor, grads)
        norm = optax.global_norm(grads)
        # Clipping multiplies by limit / norm exactly. PyTorch's own clipping adds 1e-6 to the norm, DeepSpeed's another amount.
        clip = jnp.where(norm > self.optimizer.max_grad_norm, self.optimizer.max_grad_norm / norm, 1.0)
        grads = jax.tree.map(lambda leaf: leaf * clip, grads)
        updates, adam = self._adam().update(grads, moments.cast(state.moments, "float32"), state.params)
        decay = self.optimizer.weight_decay
        params = jax.tree.map(lambda leaf, update: leaf - rate * (update + decay * leaf), state.params, updates)
        stored = moments.store(adam, self.config.jax.moments_dtype)
        return State(params, stored, None, state.step + 1), (sums, {**extra, "grad_norm": norm})

    def _mixed(self, reference: Any, params: Any, mixup: jax.Array) -> Any:
        if self.reference_on_host:
            reference = jax.device_put(reference, self.shardings)
        return jax.tree.map(lambda old, new: mixup * new + (1.0 - mixup) * old, reference, params)
