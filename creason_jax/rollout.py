"""The generation engine: slots with static caches, each holding a whole group, refilled as groups end.

A slot computes its prompt once (prefill) and keeps the prompt's keys and values once for the G samples that are drawn from
it. Decoding runs several tokens for each round trip to the host; drawing, stopping and log-probabilities are on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax import distributed, sharding
from creason_jax.logprobs import target_logprobs
from creason_jax.model import (
    DecoderConfig,
    decode_attention,
    forward,
    group_attention,
    head,
    platform_of,
    unstack_layers,
    unstacked_forward,
)
from creason_jax.model import abstract_params as parameter_shapes
from creason_jax.sampling import draw
from shared.backend import Completion, Sampling, check_request, check_scored, longest_scored, scoring_temperature
from shared.config import RunConfig
from shared.errors import InputError
from shared.grpo import GroupLayout

SMALLEST_BUCKET = 32  # prompt lengths are rounded up to this times a power of two


class Slots(NamedTuple):
    """Device state of S slots with G samples of at most C tokens and prompts of at most P.

    Caches are lists over layers: prompt `[S, K, P, N]`, own `[S, K, G, C, N]`. `drawn` `[S]` is the number of tokens drawn so
    far in each sample of the slot; `running` `[S, G]` says which samples go on.
    """

    prompt_k: list[jax.Array]
    prompt_v: list[jax.Array]
    own_k: list[jax.Array]
    own_v: list[jax.Array]
    prompt_length: jax.Array
    drawn: jax.Array
    running: jax.Array
    uniforms: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


class Engine:
    """Twin of the PyTorch engine; see `shared.backend.RolloutEngine` for the contract."""

    def __init__(self, config: RunConfig, model: DecoderConfig, mesh: jax.sharding.Mesh, *, stop_tokens: Sequence[int]):
        if not stop_tokens:
            raise InputError("the rollout engine needs at least one stop token")
        self.config = config
        self.model = model
        self.mesh = mesh
        self.stop_tokens = tuple(stop_tokens)
        self.dtype = jnp.dtype(config.learner.compute_dtype)
        self.params: Any = None
        self.layers: list[Any] = []
        shardings = sharding.param_shardings(model, mesh, sharding.ENGINE_RULES)
        self._publish = jax.jit(
            lambda params: jax.tree.map(lambda leaf: leaf.astype(self.dtype), params), out_shardings=shardings
        )
        self._unstack = jax.jit(unstack_layers)
        self._seconds: dict[str, float] = {}

    def load(self, params: Any) -> None:
        """Take the learner's parameters: cast, laid out for decoding, layers unstacked. Caches start empty at each call of
        `generate`, so nothing computed with older weights is left."""
        self.params, self.layers = None, []  # freed before their successors are made
        self.params = self._publish(params)
        self.layers = self._unstack(self.params["layers"])

    def sleep(self) -> None:
        """See `shared.backend.RolloutEngine`. Caches live inside `generate` only, so there is nothing to give back."""

    def seconds(self) -> Mapping[str, float]:
        """See `shared.backend.RolloutEngine`."""
        found, self._seconds = self._seconds, {}
        return found

    def generate(
        self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None
    ) -> list[list[Completion]]:
        """See `shared.backend.RolloutEngine`."""
        if self.params is None:
            raise InputError("the rollout engine has no weights yet: publish the learner's to it first")
        check_request(prompts, sampling, uniforms, longest=self.config.rollout.max_prompt_tokens)
        slots = _empty_slots(self, self._shape(sampling))
        count = slots.drawn.shape[0]
        waiting = deque(range(len(prompts)))
        free = deque(range(count))
        held: dict[int, int] = {}
        results: list[list[Completion]] = [[] for _ in prompts]
        while waiting or held:
            while waiting and free:
                taken = [waiting.popleft() for _ in range(min(len(waiting), len(free), self.prefill_width()))]
                places = [free.popleft() for _ in taken]
                slots = self._fill(slots, places, [prompts[i] for i in taken], sampling, uniforms, taken)
                held.update(zip(places, taken))
            slots = self._advance(slots, sampling)
            running = distributed.fetch(slots.running).max(axis=1)
            finished = [place for place in held if not running[place]]
            if finished:
                out = distributed.fetch((slots.tokens, slots.logprobs, slots.lengths))
                for place in finished:
                    results[held.pop(place)] = self._completions(place, out)
                    free.append(place)
        return results

    def lower_publish(self, params: Any) -> Any:
        """Casting and laying out the learner's parameters (arrays or shapes with shardings) for decoding, lowered."""
        return self._publish.trace(params).lower(lowering_platforms=(platform_of(self.mesh),))

    def lower_prefill(self, sampling: Sampling) -> Any:
        """The computation of `rollout.prefill_batch` prompts of the greatest length, lowered."""
        width, longest = self.prefill_width(), self.config.rollout.max_prompt_tokens
        rows = sharding.batch_sharding(self.mesh)
        placed = (
            jax.ShapeDtypeStruct((width, longest), jnp.int32, sharding=rows),
            jax.ShapeDtypeStruct((width,), jnp.int32, sharding=rows),
            jax.ShapeDtypeStruct((width, sampling.group_size, sampling.max_new_tokens), jnp.float32, sharding=rows),
            jax.ShapeDtypeStruct((width,), jnp.int32, sharding=sharding.replicated(self.mesh)),
        )
        traced = _prefill.trace(self, sampling, self.abstract_params()[0], self._abstract_slots(sampling), *placed)
        return traced.lower(lowering_platforms=(platform_of(self.mesh),))

    def lower_decode(self, sampling: Sampling) -> Any:
        """The `rollout.decode_steps` tokens between two looks of the host, lowered."""
        traced = _decode.trace(self, sampling, *self.abstract_params(), self._abstract_slots(sampling))
        return traced.lower(lowering_platforms=(platform_of(self.mesh),))

    def abstract_params(self) -> tuple[Any, list[Any]]:
        """Shapes of the parameters as they are published, and of the unstacked layers."""
        shardings = sharding.param_shardings(self.model, self.mesh, sharding.ENGINE_RULES)
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, self.dtype, sharding=sharding),
            parameter_shapes(self.model),
            shardings,
        )

        def one_layer(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            split = NamedSharding(self.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=split)

        return params, [jax.tree.map(one_layer, params["layers"])] * self.model.num_hidden_layers

    def _abstract_slots(self, sampling: Sampling) -> Slots:
        slots = jax.eval_shape(lambda: _empty_slots(self, self._shape(sampling)))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            slots,
            _slot_shardings(self, slots),
        )

    def next_token_logprobs(self, texts: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """See `shared.backend.RolloutEngine`."""
        if self.params is None:
            raise InputError("the rollout engine has no weights yet: publish the learner's to it first")
        check_scored(self.config, texts)
        begin = time.perf_counter()
        asked = tuple(int(token) for token in tokens)
        scored = np.zeros((len(texts), len(asked)), np.float32)
        width = self.prefill_width()
        for start in range(0, len(texts), width):
            part = texts[start : start + width]
            rows = sharding.batch_sharding(self.mesh)
            padded = self._padded(part, width, longest_scored(self.config))
            placed = [distributed.place(values, rows) for values in padded]
            scored[start : start + width] = distributed.fetch(_score(self, asked, self.params, *placed))[: len(part)]
        self._count("prefill", begin)
        return scored

    def _completions(self, place: int, out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Completion]:
        found = []
        for tokens, logprobs, length in zip(*(array[place] for array in out)):
            stopped = int(tokens[length - 1]) in self.stop_tokens
            found.append(Completion(tokens[:length].copy(), logprobs[:length].copy(), truncated=not stopped))
        return found

    def prefill_width(self) -> int:
        """Prompts that are computed in one call."""
        ways = sharding.batch_ways(self.mesh)
        return -(-self.config.rollout.prefill_batch // ways) * ways

    def slots(self, sampling: Sampling) -> int:
        """Groups that decode at once."""
        return self._shape(sampling).slots

    def _shape(self, sampling: Sampling) -> _Shape:
        ways = sharding.batch_ways(self.mesh)
        wanted = self.config.rollout.slots
        if sampling.temperature == 0 and self.config.evaluation.slots:
            wanted = self.config.evaluation.slots
        count = -(-wanted // ways) * ways
        return _Shape(count, sampling.group_size, sampling.max_new_tokens, self.config.rollout.max_prompt_tokens)

    def _fill(
        self,
        slots: Slots,
        places: list[int],
        prompts: list[np.ndarray],
        sampling: Sampling,
        uniforms: np.ndarray | None,
        taken: list[int],
    ) -> Slots:
        """Compute prompts, put their caches in `places`, draw the first token of each sample."""
        begin = time.perf_counter()
        width = self.prefill_width()
        tokens, lengths = self._padded(prompts, width, self.config.rollout.max_prompt_tokens)
        numbers = np.zeros((width, sampling.group_size, sampling.max_new_tokens), np.float32)
        target = np.full(width, slots.drawn.shape[0], np.int32)  # past the end: dropped when written
        for row in range(len(prompts)):
            target[row] = places[row]
            if uniforms is not None:
                numbers[row] = uniforms[taken[row]]
        rows = sharding.batch_sharding(self.mesh)
        placed = [distributed.place(values, rows) for values in (tokens, lengths, numbers)]
        placed.append(distributed.place(target, sharding.replicated(self.mesh)))
        slots = jax.block_until_ready(_prefill(self, sampling, self.params, slots, *placed))
        self._count("prefill", begin)
        return slots

    def _padded(self, texts: Sequence[np.ndarray], width: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[width, bucket]` and lengths `[width]`; buckets are few, so that little is compiled."""
        bucket = SMALLEST_BUCKET
        while bucket < max(len(text) for text in texts):
            bucket *= 2
        tokens, lengths = np.zeros((width, min(bucket, longest)), np.int32), np.zeros(width, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
            lengths[row] = len(text)
        return tokens, lengths

    def _advance(self, slots: Slots, sampling: Sampling) -> Slots:
        begin = time.perf_counter()
        slots = jax.block_until_ready(_decode(self, sampling, self.params, self.layers, slots))
        self._count("decode", begin)
        return slots

    def _count(self, phase: str, begin: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin

    def draw(self, logits: jax.Array, uniforms: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
        """Tokens and their log-probabilities (untruncated, at the scoring temperature) from float32 logits."""
        tokens = draw(
            logits,
            uniforms,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        return tokens, target_logprobs(logits / scoring_temperature(self.config.grpo, sampling.temperature), tokens)

    def stops(self, tokens: jax.Array) -> jax.Array:
        """True where a token ends a completion."""
        return functools.reduce(jnp.logical_or, (tokens == stop for stop in self.stop_tokens))


@dataclasses.dataclass(frozen=True)
class _Shape:
    slots: int
    group: int
    completion: int
    prompt: int


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty_slots(engine: Engine, shape: _Shape) -> Slots:
    """Slots with nothing running, laid out as `_slot_shardings` says."""
    model = engine.model
    layers = range(model.num_hidden_layers)
    samples = (shape.group, shape.completion)

    def zeros(sizes: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros((shape.slots, *sizes), dtype)

    def prompts() -> list[jax.Array]:
        return [zeros((model.num_key_value_heads, shape.prompt, model.head_dim), engine.dtype) for _ in layers]

    def own() -> list[jax.Array]:
        return [zeros((model.num_key_value_heads, *samples, model.head_dim), engine.dtype) for _ in layers]

    slots = Slots(
        prompt_k=prompts(),
        prompt_v=prompts(),
        own_k=own(),
        own_v=own(),
        prompt_length=zeros((), jnp.int32),
        drawn=zeros((), jnp.int32),
        running=zeros((shape.group,), bool),
        uniforms=zeros(samples, jnp.float32),
        tokens=zeros(samples, jnp.int32),
        logprobs=zeros(samples, jnp.float32),
        lengths=zeros((shape.group,), jnp.int32),
    )
    return _laid_out(engine, slots)


def _slot_shardings(engine: Engine, slots: Slots) -> Slots:
    """Slots over data and fsdp, KV heads of the caches over tensor if they divide."""
    mesh = engine.mesh
    heads = "tensor" if engine.model.num_key_value_heads % mesh.shape["tensor"] == 0 else None
    caches = NamedSharding(mesh, PartitionSpec(sharding.BATCH, heads))
    rest = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
    return Slots(
        *([caches] * engine.model.num_hidden_layers if isinstance(leaf, list) else rest for leaf in slots)  # type: ignore[arg-type]
    )


def _laid_out(engine: Engine, slots: Slots) -> Slots:
    """The slots leave every program laid out as they came in: nothing is compiled twice, and caches are written in place."""
    return jax.tree.map(jax.lax.with_sharding_constraint, slots, _slot_shardings(engine, slots))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _prefill(
    engine: Engine,
    sampling: Sampling,
    params: Any,
    slots: Slots,
    tokens: jax.Array,
    lengths: jax.Array,
    uniforms: jax.Array,
    places: jax.Array,
) -> Slots:
    """tokens `[F, bucket]`, lengths `[F]`, uniforms `[F, G, C]`, places `[F]` (a slot each; past the end: no slot)."""
    width, bucket = tokens.shape
    group = sampling.group_size
    logits, (keys, values) = _next_logits(engine, params, tokens, lengths)
    logits = jnp.broadcast_to(logits[:, None], (width, group, logits.shape[-1]))
    first, logprobs = engine.draw(logits, uniforms[:, :, 0], sampling)
    blank = jnp.zeros(uniforms.shape[:3], jnp.int32)
    more = jnp.full((width, group), uniforms.shape[2] > 1)

    def put(array: jax.Array, value: jax.Array) -> jax.Array:
        return array.at[places].set(value, mode="drop")

    def put_prompt(array: jax.Array, value: jax.Array) -> jax.Array:
        return array.at[places, :, :bucket].set(value, mode="drop")

    filled = slots._replace(
        prompt_k=[put_prompt(cache, keys[index]) for index, cache in enumerate(slots.prompt_k)],
        prompt_v=[put_prompt(cache, values[index]) for index, cache in enumerate(slots.prompt_v)],
        prompt_length=put(slots.prompt_length, lengths),
        drawn=put(slots.drawn, jnp.ones(width, jnp.int32)),
        running=put(slots.running, more & ~engine.stops(first)),
        uniforms=put(slots.uniforms, uniforms),
        tokens=put(slots.tokens, blank.at[:, :, 0].set(first)),
        logprobs=put(slots.logprobs, blank.astype(jnp.float32).at[:, :, 0].set(logprobs)),
        lengths=put(slots.lengths, jnp.ones((width, group), jnp.int32)),
    )
    return _laid_out(engine, filled)


def _next_logits(
    engine: Engine, params: Any, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Float32 logits `[F, V]` of what comes after texts `[F, bucket]`, with their keys and values `[L, F, K, bucket, N]`."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]
    layout = GroupLayout(prompt=tokens.shape[1], group=0, completion=0)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        attended = group_attention(q, k, v, valid, layout, mesh=engine.mesh)
        return attended, (k.swapaxes(1, 2), v.swapaxes(1, 2))

    hidden, kept = forward(params, engine.model, tokens, positions, attend, dtype=engine.dtype)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.einsum("fd,dv->fv", last, head(params), preferred_element_type=jnp.float32), kept


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(engine: Engine, asked: tuple[int, ...], params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Log-probabilities `[F, asked]` of the tokens `asked` after texts `[F, bucket]`."""
    logits, _ = _next_logits(engine, params, tokens, lengths)
    return target_logprobs(logits[:, None], jnp.broadcast_to(jnp.array(asked), (len(tokens), len(asked))))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _decode(engine: Engine, sampling: Sampling, params: Any, layers: list[Any], slots: Slots) -> Slots:
    """Up to `rollout.decode_steps` tokens for every running sample; ends early when none runs."""
    limit = slots.tokens.shape[2]

    def one(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        turn, slots = carry
        # A slot whose samples have all ended repeats its last place without effect until the host takes it.
        place = jnp.minimum(slots.drawn, limit - 1)
        previous = _get(slots.tokens, place - 1, axis=1)
        positions = jnp.broadcast_to((slots.prompt_length + place - 1)[:, None], previous.shape)

        def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
            own_k = _put(slots.own_k[index], k.swapaxes(1, 2), place - 1, axis=2)
            own_v = _put(slots.own_v[index], v.swapaxes(1, 2), place - 1, axis=2)
            prompt = slots.prompt_k[index], slots.prompt_v[index], slots.prompt_length
            return decode_attention(q, *prompt, own_k, own_v, place), (own_k, own_v)

        hidden, kept = unstacked_forward(params, layers, engine.model, previous, positions, attend)
        logits = jnp.einsum("sgd,dv->sgv", hidden, head(params), preferred_element_type=jnp.float32)
        numbers = _get(slots.uniforms, place, axis=1)
        token, logprobs = engine.draw(logits, numbers, sampling)
        running = slots.running

        def put(array: jax.Array, value: jax.Array) -> jax.Array:
            return _put(array, jnp.where(running, value, _get(array, place, axis=1)), place, axis=1)

        return turn + 1, slots._replace(
            own_k=[keys for keys, _ in kept],
            own_v=[values for _, values in kept],
            drawn=jnp.where(running.any(axis=1), place + 1, slots.drawn),
            running=running & ~engine.stops(token) & (place + 1 < limit)[:, None],
            tokens=put(slots.tokens, token),
            logprobs=put(slots.logprobs, logprobs),
            lengths=jnp.where(running, (place + 1)[:, None], slots.lengths),
        )

    def more(carry: tuple[jax.Array, Slots]) -> jax.Array:
        turn, slots = carry
        return (turn < engine.config.rollout.decode_steps) & slots.running.any()

    return _laid_out(engine, jax.lax.while_loop(more, one, (jnp.int32(0), slots))[1])


def _get(array: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Of each slot what is at its place along `axis` (of the slot's own dimensions). Slot by slot, so that a device looks
    at its own slots only: indexing by slot and place would gather all of them."""
    return jax.vmap(lambda own, place: jax.lax.dynamic_index_in_dim(own, place, axis, keepdims=False))(array, places)


def _put(array: jax.Array, values: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """The array with each slot's values written at its place along `axis`."""
    return jax.vmap(lambda own, value, place: jax.lax.dynamic_update_index_in_dim(own, value, place, axis))(
        array, values, places
    )
