"""A device's own rows: the forward pass as each part of the batch computes it, with weights gathered layer by layer.

Left to the compiler, a backward pass over fsdp may gather all rows' activations for the gradient of a split weight. Here it is
written out: each layer's weights are gathered before they are used, which backwards sums their gradients over the devices and
leaves each its part (ZeRO-3; "fully sharded data parallel"). The tensor axis remains the compiler's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from creason_jax.axes import BATCH, FSDP, TENSOR
from creason_jax.model import Spread

Layout = Callable[[jax.Array], jax.Array]


def by_device(compute: Callable[..., Any], mesh: Mesh, shardings: Any) -> Callable[..., Any]:
    """`compute(params, rows)`, called with each device's parts of both; what it returns has rows first.

    `shardings` are the parameters'. The gradient of a parameter is summed over the devices that do not split it.
    """
    manual = {axis for axis in mesh.axis_names if axis in BATCH or mesh.shape[axis] == 1}
    if all(mesh.shape[axis] == 1 for axis in BATCH):
        return compute
    params = jax.tree.map(lambda sharding: PartitionSpec(*(_kept(part, manual) for part in sharding.spec)), shardings)
    rows = PartitionSpec(BATCH)
    # Unchecked, for the attention kernels within say nothing about how their results vary.
    return jax.shard_map(
        compute, mesh=mesh, in_specs=(params, rows), out_specs=rows, axis_names=manual, check_vma=False
    )


def gathered(params: Any, shardings: Any, stacked: bool = False) -> Any:
    """Parameters of which each device has its part along fsdp, whole along it. `stacked`: the shardings have a layer axis in
    front."""
    if not is_manual(FSDP):
        return params
    specs = jax.tree.map(lambda sharding: tuple(sharding.spec)[stacked:], shardings)

    def one(leaf: jax.Array, spec: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.all_gather(leaf, FSDP, axis=spec.index(FSDP), tiled=True) if FSDP in spec else leaf

    def whole(params: Any) -> Any:
        return jax.tree.map(one, params, specs)

    if is_manual(TENSOR):
        return whole(params)
    # Of the compiler's axis each device gathers its own part, too: asked to, the compiler would gather along both.
    split = jax.tree.map(lambda leaf, spec: PartitionSpec(*(_kept(part, {TENSOR}) for part in spec)), params, specs)
    return jax.shard_map(whole, in_specs=(split,), out_specs=split, axis_names={TENSOR}, check_vma=False)(params)


def embedded(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows `[B, T, D]` of a table `[V, D]`, split along D over fsdp, for tokens `[B, T]`.

    Each device looks up its part of everyone's tokens and sends it to whose rows they are: less than the table.
    """
    if not is_manual(FSDP):
        return jnp.take(table, tokens, axis=0)
    everyones = jax.lax.all_gather(tokens, FSDP, axis=0, tiled=True)
    return jax.lax.all_to_all(jnp.take(table, everyones, axis=0), FSDP, split_axis=0, concat_axis=2, tiled=True)


def spread(mesh: Mesh, shardings: Any, time: str | None) -> Spread:
    """The forward pass over rows of a device: parameters with these shardings, hidden states `[B, T, D]` between layers split
    over the axis `time` along T, or whole.

    Within attention and the MLP all of a row is with each device, which has its heads and its part of the MLP's width
    ("sequence parallelism", Korthikanti et al. 2022, section 4.2.2). Said of gradients too: the compiler otherwise gathers
    weights over tensor, which for these is more.
    """
    split, whole = (functools.partial(laid_out, mesh=mesh, spec=(None, axis, None)) for axis in (time, None))
    return Spread(
        lookup=embedded,
        whole=functools.partial(gathered, shardings=shardings["layers"], stacked=True),
        stream=split,
        enter=lambda x: _both_ways(x, whole, split),
        leave=lambda x: _both_ways(x, split, whole),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _both_ways(x: jax.Array, forwards: Layout, backwards: Layout) -> jax.Array:
    """x laid out one way, its gradient another."""
    return forwards(x)


def _forwards(x: jax.Array, forwards: Layout, backwards: Layout) -> tuple[jax.Array, None]:
    return forwards(x), None


def _backwards(forwards: Layout, backwards: Layout, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (backwards(gradient),)


_both_ways.defvjp(_forwards, _backwards)


def laid_out(x: jax.Array, mesh: Mesh, spec: tuple[str | None, ...]) -> jax.Array:
    """An array with its dimensions split over those of the axes that are the compiler's."""
    around = jax.sharding.get_abstract_mesh()
    kept = PartitionSpec(*(None if axis and is_manual(axis) else axis for axis in spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh if around.empty else around, kept))


def is_manual(axis: str) -> bool:
    """Whether this code runs on each device of the axis by itself."""
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def _kept(part: str | tuple[str, ...] | None, manual: set[str]) -> str | None:
    return part if isinstance(part, str) and part in manual else None
