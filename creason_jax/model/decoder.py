"""The decoder: Flax NNX modules define the parameters; everything below is plain functions of a pytree of parameters.

`params` is a nested dict: `embed`, `layers` (each leaf with a leading layer axis), `norm`, and `head` unless it is tied.
Shape letters: B rows, T time, D model, H heads, K key-value heads, N head size, F ffn, V vocabulary, L layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from creason_jax.model.config import DecoderConfig
from creason_jax.model.rotary import rotary, rotate
from creason_jax.model.stacking import stack_layers
from shared.config import Remat

STREAM = "stream"  # the name of a layer's input for the policies below
# `learner.remat` -> which activations of a layer are stored; the backward pass computes the others again (rematerialisation).
# None: every activation is stored.
POLICIES: dict[Remat, Callable[..., Any] | None] = {
    "none": None,
    "layer": jax.checkpoint_policies.nothing_saveable,  # only the layer's input is stored
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[STREAM],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
UNROLLED = 4  # layers in one step of the scan: each step copies what the backward pass needs into stacked arrays

Params = dict[str, Any]
Attend = Callable[[jax.Array, jax.Array, jax.Array], Any]


def _rows_of(table: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take(table, tokens, axis=0)


def _unchanged(x: Any) -> Any:
    return x


class Spread(NamedTuple):
    """How a forward pass is spread over devices: functions that gather, split or constrain arrays. Default: one device."""

    lookup: Callable[[jax.Array, jax.Array], jax.Array] = _rows_of  # (table, tokens) -> hidden states
    whole: Callable[[Params], Params] = _unchanged  # gathers a layer's parameters before they are used
    stream: Callable[[jax.Array], jax.Array] = _unchanged  # lays out hidden states between layers
    enter: Callable[[jax.Array], jax.Array] = _unchanged  # lays out the input of attention and of the MLP
    leave: Callable[[jax.Array], jax.Array] = _unchanged  # lays out the output of attention and of the MLP


ALONE = Spread()


class Weight(nnx.Module):
    """One kernel or table, drawn from a normal distribution. Called on x, it contracts its first `inputs` dimensions with x.

    `biased`: adds a bias, 0 at first, with the shape of the other dimensions.
    """

    def __init__(self, shape: tuple[int, ...], scale: float, rngs: nnx.Rngs, *, inputs: int = 1, biased: bool = False):
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.inputs, self.biased = inputs, biased
        if biased:
            self.bias = nnx.Param(jnp.zeros(shape[inputs:], jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        out = project(x, self.kernel[...], self.inputs)
        return out + self.bias[...] if self.biased else out


class RMSNorm(nnx.Module):
    """Root-mean-square norm: computed in float32, cast back, then scaled, as most of Hugging Face's decoders do it.

    With `late_rounding` it is first scaled and then cast back.
    """

    def __init__(self, size: int, eps: float, *, late_rounding: bool = False):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.eps, self.late_rounding = eps, late_rounding

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if self.late_rounding:
            return (wide * self.scale[...]).astype(x.dtype)
        return wide.astype(x.dtype) * self.scale[...]


def _norm(config: DecoderConfig, size: int) -> RMSNorm:
    return RMSNorm(size, config.rms_norm_eps, late_rounding=config.late_rounding)


class Layer(nnx.Module):
    """Attention and a gated MLP, each added to the stream. A norm comes before each, or after each with `norms_after`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        model, heads, kv_heads, size = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        scale = config.initializer_range
        qkv = {"biased": config.qkv_bias}
        self.norms_after, self.qk_norm = config.norms_after, config.qk_norm
        if config.norms_after:
            self.attention_norm, self.mlp_norm = _norm(config, model), _norm(config, model)
        else:
            self.input_norm, self.post_norm = _norm(config, model), _norm(config, model)
        self.q = Weight((model, heads, size), scale, rngs, **qkv)
        self.k = Weight((model, kv_heads, size), scale, rngs, **qkv)
        self.v = Weight((model, kv_heads, size), scale, rngs, **qkv)
        self.o = Weight((heads, size, model), scale, rngs, inputs=2, biased=config.o_bias)
        self.gate = Weight((model, config.intermediate_size), scale, rngs, biased=config.mlp_bias)
        self.up = Weight((model, config.intermediate_size), scale, rngs, biased=config.mlp_bias)
        self.down = Weight((config.intermediate_size, model), scale, rngs, biased=config.mlp_bias)
        if config.qk_norm != "none":
            normed_heads = {"head": (1, 1), "whole": (heads, kv_heads)}[config.qk_norm]
            self.q_norm, self.k_norm = (_norm(config, count * size) for count in normed_heads)

    def __call__(
        self, x: jax.Array, rotation: tuple[jax.Array, jax.Array], attend: Attend, spread: Spread
    ) -> tuple[jax.Array, Any]:
        """The layer's output for x `[..., D]`, same shape, and what `attend` wants to keep.

        `rotation`: cosine and sine as `rotary.rotary` makes them. `attend(q, k, v)` returns `[..., H, N]` and a value to keep
        (keys and values for a cache, or None).
        """
        block_input = spread.enter(x if self.norms_after else self.input_norm(x))
        q, k, v = self.q(block_input), self.k(block_input), self.v(block_input)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.qk_norm == "whole":
            q, k = self.q_norm(_flat(q)).reshape(q.shape), self.k_norm(_flat(k)).reshape(k.shape)
        attended, to_keep = attend(rotate(q, rotation), rotate(k, rotation), v)
        block_output = spread.leave(self.o(attended))
        x = x + (self.attention_norm(block_output) if self.norms_after else block_output)
        block_input = spread.enter(x if self.norms_after else self.post_norm(x))
        block_output = spread.leave(self.down(jax.nn.silu(self.gate(block_input)) * self.up(block_input)))
        return x + (self.mlp_norm(block_output) if self.norms_after else block_output), to_keep


def _flat(heads: jax.Array) -> jax.Array:
    return heads.reshape(*heads.shape[:-2], -1)


class Decoder(nnx.Module):
    """The whole network. It only defines the parameters; `forward` computes with them."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        scale = config.initializer_range
        self.embed = Weight((config.vocab_size, config.hidden_size), scale, rngs)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = _norm(config, config.hidden_size)
        if not config.tie_word_embeddings:
            self.head = Weight((config.hidden_size, config.vocab_size), scale, rngs)


@functools.cache
def abstract_params(config: DecoderConfig) -> Params:
    """Shapes and dtypes of the parameters; no value is computed."""

    def stacked() -> Params:
        params = nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(0))))
        layers = [params["layers"][index] for index in range(config.num_hidden_layers)]
        return {**params, "layers": stack_layers(layers)}

    return jax.eval_shape(stacked)


@functools.cache
def _modules(config: DecoderConfig) -> tuple[nnx.GraphDef, nnx.GraphDef]:
    """The graph definitions of a layer and of the final norm."""
    layer = nnx.eval_shape(lambda: Layer(config, nnx.Rngs(0)))
    norm = nnx.eval_shape(lambda: _norm(config, config.hidden_size))
    return nnx.split(layer)[0], nnx.split(norm)[0]


def project(x: jax.Array, kernel: jax.Array, inputs: int = 1) -> jax.Array:
    """Contract the last `inputs` dimensions of x with the first `inputs` dimensions of the kernel."""
    # Reshaped to one plain matrix product: with more dimensions XLA's CPU backend takes twice as long, most of all for the
    # gradient.
    out = kernel.shape[inputs:]
    flat = x.reshape(-1, math.prod(kernel.shape[:inputs])) @ kernel.reshape(-1, math.prod(out))
    return flat.reshape(*x.shape[: x.ndim - inputs], *out)


def forward(
    params: Params,
    config: DecoderConfig,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend,
    *,
    dtype: jnp.dtype,
    remat: Remat = "none",
    spread: Spread = ALONE,
) -> tuple[jax.Array, Any]:
    """Hidden states `[B, T, D]` after the final norm, and what `attend` kept, stacked over layers.

    tokens and positions `[B, T]`. Parameters are cast to `dtype`. The layers run in a `lax.scan`. `remat` says which of their
    activations are stored for the backward pass (see `POLICIES`).
    """
    layer_graph, norm_graph = _modules(config)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    rotation = rotary(positions, config, dtype)

    def step(x: jax.Array, layer: Params) -> tuple[jax.Array, Any]:
        compute = nnx.merge(layer_graph, spread.whole(layer))
        x, to_keep = compute(checkpoint_name(x, STREAM), rotation, attend, spread)
        return spread.stream(x), to_keep

    policy = POLICIES[remat]
    if policy is not None:
        step = jax.checkpoint(step, policy=policy)
    x = spread.stream(spread.lookup(params["embed"]["kernel"], tokens))
    # With remat, one layer in a step: the layers of a step may be computed again together, and all be in memory at once.
    unrolled = 1 if policy is not None else min(UNROLLED, config.num_hidden_layers)
    x, to_keep = jax.lax.scan(step, x, params["layers"], unroll=unrolled)
    return nnx.merge(norm_graph, params["norm"])(x), to_keep


def unstacked_forward(
    params: Params,
    config: DecoderConfig,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Callable[[int, jax.Array, jax.Array, jax.Array], Any],
) -> tuple[jax.Array, list[Any]]:
    """As `forward`, but `params["layers"]` is a list of layers. For generation.

    A scan would copy the stacked caches that it carries, and copy each layer's kernels out of the stack for every token.
    `attend(layer, q, k, v)` also gets the index of the layer. Parameters are used in the dtype that they have.
    """
    x = jnp.take(params["embed"]["kernel"], tokens, axis=0)
    rotation = rotary(positions, config, x.dtype)
    all_kept = []
    for index, layer in enumerate(params["layers"]):
        x, kept = layer_forward(layer, config, x, rotation, functools.partial(attend, index))
        all_kept.append(kept)
    return normed(params["norm"], config, x), all_kept


def layer_forward(
    layer: Params, config: DecoderConfig, x: jax.Array, rotation: tuple[jax.Array, jax.Array], attend: Attend
) -> tuple[jax.Array, Any]:
    """Hidden states `[B, T, D]` after one layer, and what `attend` kept."""
    return nnx.merge(_modules(config)[0], layer)(x, rotation, attend, ALONE)


def normed(norm: Params, config: DecoderConfig, x: jax.Array) -> jax.Array:
    """Hidden states `[..., D]` after the final norm."""
    return nnx.merge(_modules(config)[1], norm)(x)


def head(params: Params) -> jax.Array:
    """The output projection `[D, V]`: the model's own head, or the transposed embedding where they are tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["kernel"].T
