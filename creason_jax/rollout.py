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

from creason_jax import sharding
from creason_jax.logprobs import target_logprobs
from creason_jax.model import (
    DecoderConfig,
    decode_attention,
    forward,
    group_attention,
    head,
    unstack_layers,
    unstacked_forward,
)
from creason_jax.sampling import draw
from shared.backend import Completion, Sampling, check_request, scoring_temperature
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
        slots = self._empty(sampling)
        count = slots.drawn.shape[0]
        waiting = deque(range(len(prompts)))
        free = deque(range(count))
        held: dict[int, int] = {}
        results: list[list[Completion]] = [[] for _ in prompts]
        while waiting or held:
            while waiting and free:
                taken = [waiting.popleft() for _ in range(min(len(waiting), len(free), self._prefill_width()))]
                places = [free.popleft() for _ in taken]
                slots = self._fill(slots, places, [prompts[i] for i in taken], sampling, uniforms, taken)
                held.update(zip(places, taken))
            slots = self._advance(slots, sampling)
            running = np.asarray(slots.running).max(axis=1)
            finished = [place for place in held if not running[place]]
            if finished:
                out = jax.device_get((slots.tokens, slots.logprobs, slots.lengths))
                for place in finished:
                    results[held.pop(place)] = self._completions(place, out)
                    free.append(place)
        return results

    def _completions(self, place: int, out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Completion]:
        found = []
        for tokens, logprobs, length in zip(*(array[place] for array in out)):
            stopped = int(tokens[length - 1]) in self.stop_tokens
            found.append(Completion(tokens[:length].copy(), logprobs[:length].copy(), truncated=not stopped))
        return found

    def _prefill_width(self) -> int:
        ways = sharding.batch_ways(self.mesh)
        return -(-self.config.rollout.prefill_batch // ways) * ways

    def _empty(self, sampling: Sampling) -> Slots:
        ways = sharding.batch_ways(self.mesh)
        wanted = self.config.rollout.slots
        if sampling.temperature == 0 and self.config.evaluation.slots:
            wanted = self.config.evaluation.slots
        count = -(-wanted // ways) * ways
        shape = _Shape(count, sampling.group_size, sampling.max_new_tokens, self.config.rollout.max_prompt_tokens)
        return _empty_slots(self, shape)

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
        width = self._prefill_width()
        longest = max(len(prompt) for prompt in prompts)
        bucket = SMALLEST_BUCKET
        while bucket < longest:
            bucket *= 2
        bucket = min(bucket, self.config.rollout.max_prompt_tokens)
        tokens = np.zeros((width, bucket), np.int32)
        lengths = np.zeros(width, np.int32)
        numbers = np.zeros((width, sampling.group_size, sampling.max_new_tokens), np.float32)
        target = np.full(width, slots.drawn.shape[0], np.int32)  # past the end: dropped when written
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
            target[row] = places[row]
            if uniforms is not None:
                numbers[row] = uniforms[taken[row]]
        rows = sharding.batch_sharding(self.mesh)
        placed = jax.device_put((tokens, lengths, numbers, target), (rows, rows, rows, sharding.replicated(self.mesh)))
        slots = jax.block_until_ready(_prefill(self, sampling, self.params, slots, *placed))
        self._count("prefill", begin)
        return slots

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
    """Slots with nothing running, split over the mesh: slots over data and fsdp, KV heads over tensor if they divide."""
    model, mesh = engine.model, engine.mesh
    heads = "tensor" if model.num_key_value_heads % mesh.shape["tensor"] == 0 else None

    def zeros(sizes: tuple[int, ...], dtype: Any, axes: tuple[str | None, ...] = ()) -> jax.Array:
        array = jnp.zeros((shape.slots, *sizes), dtype)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(sharding.BATCH, *axes)))

    layers = range(model.num_hidden_layers)
    samples = (shape.group, shape.completion)

    def prompts() -> list[jax.Array]:
        sizes = (model.num_key_value_heads, shape.prompt, model.head_dim)
        return [zeros(sizes, engine.dtype, (heads,)) for _ in layers]

    def own() -> list[jax.Array]:
        sizes = (model.num_key_value_heads, *samples, model.head_dim)
        return [zeros(sizes, engine.dtype, (heads,)) for _ in layers]

    return Slots(
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
    positions = jnp.broadcast_to(jnp.arange(bucket, dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]
    layout = GroupLayout(prompt=bucket, group=0, completion=0)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        attended = group_attention(q, k, v, valid, layout, mesh=engine.mesh)
        return attended, (k.swapaxes(1, 2), v.swapaxes(1, 2))

    hidden, (keys, values) = forward(params, engine.model, tokens, positions, attend, dtype=engine.dtype)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = jnp.einsum("fd,dv->fv", last, head(params), preferred_element_type=jnp.float32)
    logits = jnp.broadcast_to(logits[:, None], (width, group, logits.shape[-1]))
    first, logprobs = engine.draw(logits, uniforms[:, :, 0], sampling)
    blank = jnp.zeros(uniforms.shape[:3], jnp.int32)
    more = jnp.full((width, group), uniforms.shape[2] > 1)

    def put(array: jax.Array, value: jax.Array) -> jax.Array:
        return array.at[places].set(value, mode="drop")

    def put_prompt(array: jax.Array, value: jax.Array) -> jax.Array:
        return array.at[places, :, :bucket].set(value, mode="drop")

    return slots._replace(
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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _decode(engine: Engine, sampling: Sampling, params: Any, layers: list[Any], slots: Slots) -> Slots:
    """Up to `rollout.decode_steps` tokens for every running sample; ends early when none runs."""
    count, _, limit = slots.tokens.shape
    row = jnp.arange(count)

    def one(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        turn, slots = carry
        # A slot whose samples have all ended repeats its last place without effect until the host takes it.
        place = jnp.minimum(slots.drawn, limit - 1)
        previous = jnp.take_along_axis(slots.tokens, (place - 1)[:, None, None], axis=2)[:, :, 0]
        positions = jnp.broadcast_to((slots.prompt_length + place - 1)[:, None], previous.shape)

        def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
            own_k = slots.own_k[index].at[row, :, :, place - 1].set(k.swapaxes(1, 2))
            own_v = slots.own_v[index].at[row, :, :, place - 1].set(v.swapaxes(1, 2))
            prompt = slots.prompt_k[index], slots.prompt_v[index], slots.prompt_length
            return decode_attention(q, *prompt, own_k, own_v, place), (own_k, own_v)

        hidden, kept = unstacked_forward(params, layers, engine.model, previous, positions, attend)
        logits = jnp.einsum("sgd,dv->sgv", hidden, head(params), preferred_element_type=jnp.float32)
        numbers = jnp.take_along_axis(slots.uniforms, place[:, None, None], axis=2)[:, :, 0]
        token, logprobs = engine.draw(logits, numbers, sampling)
        running = slots.running

        def put(array: jax.Array, value: jax.Array) -> jax.Array:
            return array.at[row, :, place].set(jnp.where(running, value, array[row, :, place]))

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

    return jax.lax.while_loop(more, one, (jnp.int32(0), slots))[1]
