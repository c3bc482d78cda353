"""What the generation engine computes on the devices: slots with static caches, prefill into them, decoding from them.

Shape letters: S slots, G samples of a slot, C tokens of a sample at most, P tokens of a prompt at most, K key-value heads
(as the caches hold them), N head size, F prompts of one prefill.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig, decode_attention, group_attention, head, unstacked_forward
from creason_jax.model.logprobs import target_logprobs
from creason_jax.rollout.sampling import draw
from shared.backend import Sampling, scoring_temperature
from shared.config import GrpoConfig
from shared.grpo import GroupLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the programs of an engine are compiled for. Equal values share their programs."""

    model: DecoderConfig
    mesh: jax.sharding.Mesh
    dtype: jnp.dtype  # of weights and caches
    stop_tokens: tuple[int, ...]  # each ends a completion
    decode_steps: int  # tokens between two looks of the host
    grpo: GrpoConfig  # says at which temperature drawn tokens are scored
    attention: Callable[..., jax.Array] = decode_attention  # of drawn tokens over the caches

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
        return tokens, target_logprobs(logits / scoring_temperature(self.grpo, sampling.temperature), tokens)

    def stops(self, tokens: jax.Array) -> jax.Array:
        """True where a token ends a completion."""
        return functools.reduce(jnp.logical_or, (tokens == stop for stop in self.stop_tokens))


class Slots(NamedTuple):
    """Device state of S slots, each with a prompt and the G samples drawn from it.

    Caches are lists over layers, keys as a product reads them: of prompts `[S, K, N, P]`, values `[S, K, P, N]`; of samples
    `[S, K, G, N, C]`, values `[S, K, G, C, N]`. Columns of the samples' caches are a ring that all slots turn together: the
    newest key of every sample goes to column `clock` (0 to C - 1), which is one plain write for all slots, where a column
    of each slot's own would be a scatter. `drawn` `[S]` is the number of tokens drawn so far in each sample of the slot;
    `running` `[S, G]` says which samples go on.
    """

    prompt_k: list[jax.Array]
    prompt_v: list[jax.Array]
    own_k: list[jax.Array]
    own_v: list[jax.Array]
    clock: jax.Array
    prompt_length: jax.Array
    drawn: jax.Array
    running: jax.Array
    uniforms: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


class Shape(NamedTuple):
    """Sizes of the slots."""

    slots: int
    group: int
    completion: int
    prompt: int


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_slots(program: Program, shape: Shape) -> Slots:
    """Slots with nothing running, laid out as `slot_shardings` says."""
    model = program.model
    heads, size = cached_heads(program), model.head_dim
    samples = (shape.group, shape.completion)

    def zeros(sizes: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros((shape.slots, *sizes), dtype)

    def caches(*sizes: int) -> list[jax.Array]:
        return [zeros((heads, *sizes), program.dtype) for _ in range(model.num_hidden_layers)]

    slots = Slots(
        prompt_k=caches(size, shape.prompt),
        prompt_v=caches(shape.prompt, size),
        own_k=caches(shape.group, size, shape.completion),
        own_v=caches(*samples, size),
        clock=jnp.int32(0),
        prompt_length=zeros((), jnp.int32),
        drawn=zeros((), jnp.int32),
        running=zeros((shape.group,), bool),
        uniforms=zeros(samples, jnp.float32),
        tokens=zeros(samples, jnp.int32),
        logprobs=zeros(samples, jnp.float32),
        lengths=zeros((shape.group,), jnp.int32),
    )
    return _laid_out(program, slots)


def cached_heads(program: Program) -> int:
    """Key-value heads in the caches: each is repeated until they divide over tensor. 10 heads over 8 devices: 40, so that a
    device keeps and reads 5, where it would keep all 10 otherwise."""
    return math.lcm(program.model.num_key_value_heads, program.mesh.shape["tensor"])


def _as_cached(program: Program, x: jax.Array) -> jax.Array:
    """Keys or values `[..., K, N]` with their heads repeated as the caches hold them."""
    return jnp.repeat(x, cached_heads(program) // program.model.num_key_value_heads, axis=-2)


def slot_shardings(program: Program, slots: Slots) -> Slots:
    """Slots over data and fsdp, KV heads of the caches over tensor."""
    mesh = program.mesh
    caches = NamedSharding(mesh, PartitionSpec(sharding.BATCH, "tensor"))
    rest = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
    laid = [[caches] * program.model.num_hidden_layers if isinstance(leaf, list) else rest for leaf in slots]
    return Slots(*laid)._replace(clock=sharding.replicated(mesh))  # type: ignore[arg-type]


def _laid_out(program: Program, slots: Slots) -> Slots:
    """The slots leave every program laid out as they came in: nothing is compiled twice, and caches are written in place."""
    return jax.tree.map(jax.lax.with_sharding_constraint, slots, slot_shardings(program, slots))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(
    program: Program,
    sampling: Sampling,
    params: Any,
    slots: Slots,
    tokens: jax.Array,
    lengths: jax.Array,
    uniforms: jax.Array,
    places: jax.Array,
) -> Slots:
    """Compute prompts, put their caches in slots, draw the first token of each sample.

    tokens `[F, bucket]`, lengths `[F]`, uniforms `[F, G, C]`. places `[F]`: slots among those of the part of the mesh that
    the row belongs to, so that nothing is sent between parts; past their end: no slot.
    """
    width, bucket = tokens.shape
    group = sampling.group_size
    parts = sharding.batch_ways(program.mesh)
    logits, kept = _next_logits(program, params, tokens, lengths)
    logits = jnp.broadcast_to(logits[:, None], (width, group, logits.shape[-1]))
    first, logprobs = program.draw(logits, uniforms[:, :, 0], sampling)
    blank = jnp.zeros(uniforms.shape[:3], jnp.int32)
    more = jnp.full((width, group), uniforms.shape[2] > 1)

    def by_part(array: jax.Array) -> jax.Array:
        return array.reshape(parts, -1, *array.shape[1:])

    def put(array: jax.Array, value: jax.Array, *beginning: slice) -> jax.Array:
        def into(own: jax.Array, where: jax.Array, new: jax.Array) -> jax.Array:
            return own.at[where, *beginning].set(new, mode="drop")

        return jax.vmap(into)(by_part(array), by_part(places), by_part(value)).reshape(array.shape)

    everything = slice(None)
    filled = slots._replace(
        prompt_k=[
            put(cache, keys.transpose(0, 2, 3, 1), everything, everything, slice(bucket))
            for cache, (keys, _) in zip(slots.prompt_k, kept)
        ],
        prompt_v=[
            put(cache, values.swapaxes(1, 2), everything, slice(bucket))
            for cache, (_, values) in zip(slots.prompt_v, kept)
        ],
        prompt_length=put(slots.prompt_length, lengths),
        drawn=put(slots.drawn, jnp.ones(width, jnp.int32)),
        running=put(slots.running, more & ~program.stops(first)),
        uniforms=put(slots.uniforms, uniforms),
        tokens=put(slots.tokens, blank.at[:, :, 0].set(first)),
        logprobs=put(slots.logprobs, blank.astype(jnp.float32).at[:, :, 0].set(logprobs)),
        lengths=put(slots.lengths, jnp.ones((width, group), jnp.int32)),
    )
    return _laid_out(program, filled)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(program: Program, asked: tuple[int, ...], params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Log-probabilities `[F, asked]` of the tokens `asked` after texts `[F, bucket]`."""
    logits, _ = _next_logits(program, params, tokens, lengths)
    return target_logprobs(logits[:, None], jnp.broadcast_to(jnp.array(asked), (len(tokens), len(asked))))


def _next_logits(
    program: Program, params: Any, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Float32 logits `[F, V]` of what comes after texts `[F, bucket]`; of each layer keys and values `[F, bucket, K, N]`."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]
    layout = GroupLayout(prompt=tokens.shape[1], group=0, completion=0)

    def attend(_: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        kept = _as_cached(program, k), _as_cached(program, v)
        return group_attention(q, k, v, valid, layout, mesh=program.mesh), kept

    hidden, kept = unstacked_forward(params, program.model, tokens, positions, attend)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.einsum("fd,dv->fv", last, head(params), preferred_element_type=jnp.float32), kept


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(program: Program, sampling: Sampling, params: Any, slots: Slots) -> Slots:
    """Up to `rollout.decode_steps` tokens for every running sample; ends early when none runs."""
    limit = slots.tokens.shape[2]

    def one(carry: tuple[jax.Array, jax.Array, Slots]) -> tuple[jax.Array, jax.Array, Slots]:
        turn, _, slots = carry
        # A slot whose samples have all ended repeats its last place without effect until the host takes it.
        place = jnp.minimum(slots.drawn, limit - 1)
        previous = _get(slots.tokens, place - 1, axis=1)
        positions = jnp.broadcast_to((slots.prompt_length + place - 1)[:, None], previous.shape)
        # Columns of the ring by the age of what they hold: the newest lies just before the clock.
        own_there = (slots.clock - 1 - jnp.arange(limit)) % limit < place[:, None] - 1

        def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
            k, v = _as_cached(program, k), _as_cached(program, v)
            prompt = slots.prompt_k[index], slots.prompt_v[index], slots.prompt_length
            return program.attention(q, k, v, *prompt, slots.own_k[index], slots.own_v[index], own_there), (k, v)

        hidden, kept = unstacked_forward(params, program.model, previous, positions, attend)
        logits = jnp.einsum("sgd,dv->sgv", hidden, head(params), preferred_element_type=jnp.float32)
        numbers = _get(slots.uniforms, place, axis=1)
        token, logprobs = program.draw(logits, numbers, sampling)
        running = slots.running
        still = running & ~program.stops(token) & (place + 1 < limit)[:, None]
        going = still.any()
        # Where nothing goes on nobody reads the caches again. That the column hangs on it makes the compiler write them
        # after their last reader, in place: otherwise it copies every cache for every token.
        column = jnp.where(going, slots.clock, 0)

        def write(cache: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(cache, new.swapaxes(1, 2), column, axis)

        def put(array: jax.Array, value: jax.Array) -> jax.Array:
            return _put(array, jnp.where(running, value, _get(array, place, axis=1)), place, axis=1)

        return (
            turn + 1,
            going,
            slots._replace(
                own_k=[write(cache, keys, 4) for cache, (keys, _) in zip(slots.own_k, kept)],
                own_v=[write(cache, values, 3) for cache, (_, values) in zip(slots.own_v, kept)],
                clock=(slots.clock + 1) % limit,
                drawn=jnp.where(running.any(axis=1), place + 1, slots.drawn),
                running=still,
                tokens=put(slots.tokens, token),
                logprobs=put(slots.logprobs, logprobs),
                lengths=jnp.where(running, (place + 1)[:, None], slots.lengths),
            ),
        )

    def more(carry: tuple[jax.Array, jax.Array, Slots]) -> jax.Array:
        turn, going, _ = carry
        return (turn < program.decode_steps) & going

    return _laid_out(program, jax.lax.while_loop(more, one, (jnp.int32(0), slots.running.any(), slots))[2])


def _get(array: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Of each slot what is at its place along `axis` (of the slot's own dimensions). Slot by slot, so that a device looks
    at its own slots only: indexing by slot and place would gather all of them."""
    return jax.vmap(lambda own, place: jax.lax.dynamic_index_in_dim(own, place, axis, keepdims=False))(array, places)


def _put(array: jax.Array, values: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """The array with each slot's values written at its place along `axis`."""
    return jax.vmap(lambda own, value, place: jax.lax.dynamic_update_index_in_dim(own, value, place, axis))(
        array, values, places
    )
