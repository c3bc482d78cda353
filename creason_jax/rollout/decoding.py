"""The compiled programs of the generation engine: slots with static KV caches, prefill into them, decoding from them.

Shape letters: S slots, G samples of a slot, C most tokens of a sample, P most tokens of a prompt, K key-value heads (as the
caches hold them), N head size, V vocabulary, F prompts of one prefill.
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
    """The constants that an engine's programs are compiled with. Engines with equal constants share compiled programs."""

    model: DecoderConfig
    mesh: jax.sharding.Mesh
    dtype: jnp.dtype  # of weights and caches
    stop_tokens: tuple[int, ...]  # any of them ends a completion
    decode_steps: int  # tokens that are decoded for each round trip to the host
    grpo: GrpoConfig  # says at which temperature the drawn tokens are scored
    attention: Callable[..., jax.Array] = decode_attention  # of drawn tokens over the caches

    def draw(self, logits: jax.Array, uniforms: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
        """Draw tokens `[...]` from float32 logits `[..., V]`, and return them with their log-probabilities.

        The log-probabilities are at the scoring temperature and of the whole distribution, without top-k, top-p or min-p.
        """
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
    """State of S slots on the devices. Each slot has a prompt and the G samples drawn from it.

    KV caches are lists over layers. Keys have the layout in which a matrix product reads them: prompts' keys `[S, K, N, P]` and
    values `[S, K, P, N]`, samples' keys `[S, K, G, N, C]` and values `[S, K, G, C, N]`. The C columns of the samples' caches are
    a ring buffer that all slots share: the newest key of every sample goes to column `clock` (0 to C - 1). That is one
    contiguous write for all slots; with a column for each slot it would be a scatter. `drawn` `[S]` is the number of tokens
    drawn so far in each sample of the slot; `running` `[S, G]` is true for samples that go on.
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
    """Slots without any running sample, with the shardings of `slot_shardings`."""
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
    """The number of key-value heads in the caches: they are repeated so that the tensor axis divides it.

    Example: 10 heads over 8 devices become 40, so a device keeps and reads 5. Without the repetition it would keep all 10.
    """
    return math.lcm(program.model.num_key_value_heads, program.mesh.shape["tensor"])


def _as_cached(program: Program, x: jax.Array) -> jax.Array:
    """Keys or values `[..., K, N]` with their heads repeated as the caches hold them."""
    return jnp.repeat(x, cached_heads(program) // program.model.num_key_value_heads, axis=-2)


def slot_shardings(program: Program, slots: Slots) -> Slots:
    """The shardings of the slots: slots are split over data and fsdp, the KV heads of the caches over tensor."""
    mesh = program.mesh
    caches = NamedSharding(mesh, PartitionSpec(sharding.BATCH, "tensor"))
    rest = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
    laid = [[caches] * program.model.num_hidden_layers if isinstance(leaf, list) else rest for leaf in slots]
    return Slots(*laid)._replace(clock=sharding.replicated(mesh))  # type: ignore[arg-type]


def _laid_out(program: Program, slots: Slots) -> Slots:
    """Constrain the slots to `slot_shardings`, the shardings in which every program takes them.

    So no program is compiled a second time, and the caches are updated in place.
    """
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
    own_slots: jax.Array,
) -> Slots:
    """Compute prompts, write their keys and values into slots, and draw the first token of each sample.

    tokens `[F, bucket]`, lengths `[F]`, uniforms `[F, G, C]`. own_slots `[F]`: the slot of each row, counted within the slots
    of the row's own part of the mesh, so that nothing is sent between parts. A number past their end means no slot.
    """
    width, bucket = tokens.shape
    group = sampling.group_size
    parts = sharding.batch_ways(program.mesh)
    logits, caches = _next_logits(program, params, tokens, lengths)
    logits = jnp.broadcast_to(logits[:, None], (width, group, logits.shape[-1]))
    first, logprobs = program.draw(logits, uniforms[:, :, 0], sampling)
    blank = jnp.zeros(uniforms.shape[:3], jnp.int32)
    goes_on = jnp.full((width, group), uniforms.shape[2] > 1)

    def by_part(array: jax.Array) -> jax.Array:
        return array.reshape(parts, -1, *array.shape[1:])

    def put(array: jax.Array, value: jax.Array, *beginning: slice) -> jax.Array:
        def into(own: jax.Array, where: jax.Array, new: jax.Array) -> jax.Array:
            return own.at[where, *beginning].set(new, mode="drop")

        return jax.vmap(into)(by_part(array), by_part(own_slots), by_part(value)).reshape(array.shape)

    everything = slice(None)
    filled = slots._replace(
        prompt_k=[
            put(cache, keys.transpose(0, 2, 3, 1), everything, everything, slice(bucket))
            for cache, (keys, _) in zip(slots.prompt_k, caches)
        ],
        prompt_v=[
            put(cache, values.swapaxes(1, 2), everything, slice(bucket))
            for cache, (_, values) in zip(slots.prompt_v, caches)
        ],
        prompt_length=put(slots.prompt_length, lengths),
        drawn=put(slots.drawn, jnp.ones(width, jnp.int32)),
        running=put(slots.running, goes_on & ~program.stops(first)),
        uniforms=put(slots.uniforms, uniforms),
        tokens=put(slots.tokens, blank.at[:, :, 0].set(first)),
        logprobs=put(slots.logprobs, blank.astype(jnp.float32).at[:, :, 0].set(logprobs)),
        lengths=put(slots.lengths, jnp.ones((width, group), jnp.int32)),
    )
    return _laid_out(program, filled)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(program: Program, targets: tuple[int, ...], params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Log-probabilities `[F, len(targets)]` of each of the target tokens as the next token after texts `[F, bucket]`."""
    logits, _ = _next_logits(program, params, tokens, lengths)
    return target_logprobs(logits[:, None], jnp.broadcast_to(jnp.array(targets), (len(tokens), len(targets))))


def _next_logits(
    program: Program, params: Any, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Float32 logits `[F, V]` of the next token after texts `[F, bucket]`; keys and values `[F, bucket, K, N]` of each layer."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]
    layout = GroupLayout(prompt=tokens.shape[1], group=0, completion=0)

    def attend(_: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        keys_and_values = _as_cached(program, k), _as_cached(program, v)
        return group_attention(q, k, v, valid, layout, mesh=program.mesh), keys_and_values

    hidden, caches = unstacked_forward(params, program.model, tokens, positions, attend)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.einsum("fd,dv->fv", last, head(params), preferred_element_type=jnp.float32), caches


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(program: Program, sampling: Sampling, params: Any, slots: Slots) -> Slots:
    """Decode up to `rollout.decode_steps` tokens of every running sample; stops early when no sample runs."""
    limit = slots.tokens.shape[2]

    def one_token(carry: tuple[jax.Array, jax.Array, Slots]) -> tuple[jax.Array, jax.Array, Slots]:
        turn, _, slots = carry
        # A slot whose samples have all ended repeats its last position, without effect, until the host collects it.
        position = jnp.minimum(slots.drawn, limit - 1)
        previous = _get(slots.tokens, position - 1, axis=1)
        positions = jnp.broadcast_to((slots.prompt_length + position - 1)[:, None], previous.shape)
        # The newest key is in the column just before the clock, and a column's age is its distance from there. The keys of all
        # drawn tokens but the newest are cached: `position - 1` columns, those of the lowest ages.
        own_there = (slots.clock - 1 - jnp.arange(limit)) % limit < position[:, None] - 1

        def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
            k, v = _as_cached(program, k), _as_cached(program, v)
            prompt = slots.prompt_k[index], slots.prompt_v[index], slots.prompt_length
            return program.attention(q, k, v, *prompt, slots.own_k[index], slots.own_v[index], own_there), (k, v)

        hidden, new_caches = unstacked_forward(params, program.model, previous, positions, attend)
        logits = jnp.einsum("sgd,dv->sgv", hidden, head(params), preferred_element_type=jnp.float32)
        uniforms = _get(slots.uniforms, position, axis=1)
        token, logprobs = program.draw(logits, uniforms, sampling)
        running = slots.running
        still = running & ~program.stops(token) & (position + 1 < limit)[:, None]
        going = still.any()
        # The column depends on `going` although any column would do when no sample goes on (then the caches are not read again).
        # This dependence makes the compiler write the caches after their last read, and so in place; without it, XLA copies
        # every cache for every token.
        column = jnp.where(going, slots.clock, 0)

        def write(cache: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(cache, new.swapaxes(1, 2), column, axis)

        def put(array: jax.Array, value: jax.Array) -> jax.Array:
            return _put(array, jnp.where(running, value, _get(array, position, axis=1)), position, axis=1)

        return (
            turn + 1,
            going,
            slots._replace(
                own_k=[write(cache, keys, 4) for cache, (keys, _) in zip(slots.own_k, new_caches)],
                own_v=[write(cache, values, 3) for cache, (_, values) in zip(slots.own_v, new_caches)],
                clock=(slots.clock + 1) % limit,
                drawn=jnp.where(running.any(axis=1), position + 1, slots.drawn),
                running=still,
                tokens=put(slots.tokens, token),
                logprobs=put(slots.logprobs, logprobs),
                lengths=jnp.where(running, (position + 1)[:, None], slots.lengths),
            ),
        )

    def unfinished(carry: tuple[jax.Array, jax.Array, Slots]) -> jax.Array:
        turn, going, _ = carry
        return (turn < program.decode_steps) & going

    return _laid_out(program, jax.lax.while_loop(unfinished, one_token, (jnp.int32(0), slots.running.any(), slots))[2])


def _get(array: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """For each slot, the element at its place along `axis` (counted without the slot dimension).

    With vmap a device reads only its own slots; indexing with slot and place would all-gather them.
    """
    return jax.vmap(lambda own, place: jax.lax.dynamic_index_in_dim(own, place, axis, keepdims=False))(array, places)


def _put(array: jax.Array, values: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """The array after each slot's values are written at its place along `axis` (counted without the slot dimension)."""
    return jax.vmap(lambda own, value, place: jax.lax.dynamic_update_index_in_dim(own, value, place, axis))(
        array, values, places
    )
