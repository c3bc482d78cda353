"""The forward pass over a device's own rows, with each layer's weights all-gathered before use (ZeRO-3, also called FSDP).

With automatic sharding over fsdp, the compiler may all-gather the activations of all rows for the gradient of a split weight. So
here `shard_map` makes the data and fsdp axes manual: each device computes its own rows and all-gathers each layer's weights.
In the backward pass an all-gather becomes a reduce-scatter: it sums the gradients over the devices, and each device keeps its
part. The tensor axis stays automatic: the compiler splits along it.
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
    """A function that calls `compute(params, rows)` on each device with that device's parts of both.

    `shardings`: of the parameters. The arrays that `compute` returns have rows as their first dimension. The gradient of a
    parameter is summed over the devices that hold the same part of it.
    """
    manual = {axis for axis in mesh.axis_names if axis in BATCH or mesh.shape[axis] == 1}
    if all(mesh.shape[axis] == 1 for axis in BATCH):
        return compute
    params = jax.tree.map(lambda sharding: PartitionSpec(*(_kept(part, manual) for part in sharding.spec)), shardings)
    rows = PartitionSpec(BATCH)
    # check_vma=False: the attention kernels inside do not declare over which axes their results vary.
    return jax.shard_map(
        compute, mesh=mesh, in_specs=(params, rows), out_specs=rows, axis_names=manual, check_vma=False
    )


def gathered(params: Any, shardings: Any, stacked: bool = False) -> Any:
    """All-gather parameters along fsdp. `stacked`: their shardings have a leading layer axis, which the parameters lack."""
    if not is_manual(FSDP):
        return params
    specs = jax.tree.map(lambda sharding: tuple(sharding.spec)[stacked:], shardings)

    def gather(leaf: jax.Array, spec: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.all_gather(leaf, FSDP, axis=spec.index(FSDP), tiled=True) if FSDP in spec else leaf

    def whole(params: Any) -> Any:
        return jax.tree.map(gather, params, specs)

    if is_manual(TENSOR):
        return whole(params)
    # The tensor axis is made manual for this call, so that only fsdp is gathered: the compiler would gather along both.
    split = jax.tree.map(lambda leaf, spec: PartitionSpec(*(_kept(part, {TENSOR}) for part in spec)), params, specs)
    return jax.shard_map(whole, in_specs=(split,), out_specs=split, axis_names={TENSOR}, check_vma=False)(params)


def embedded(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Embeddings `[B, T, D]` of tokens `[B, T]`, from a table `[V, D]` that is split along D over fsdp.

    Each device looks up its columns for the tokens of all devices, and an all-to-all sends each device the columns of its own
    rows. That moves fewer bytes than gathering the table.
    """
    if not is_manual(FSDP):
        return jnp.take(table, tokens, axis=0)
    everyones = jax.lax.all_gather(tokens, FSDP, axis=0, tiled=True)
    return jax.lax.all_to_all(jnp.take(table, everyones, axis=0), FSDP, split_axis=0, concat_axis=2, tiled=True)


def spread(mesh: Mesh, shardings: Any, time: str | None) -> Spread:
    """How a device's forward pass uses the mesh: parameters with these shardings; between layers, hidden states `[B, T, D]`
    split along T over the mesh axis `time` (None: whole).

    Inside attention and the MLP every device has all of T, but only its heads and its part of the MLP's width (sequence
    parallelism: Korthikanti et al. 2022, section 4.2.2). The gradients are constrained in the same way: otherwise the compiler
    all-gathers weights over tensor, which moves more bytes.
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
    """x with the layout `forwards`, whose gradient has the layout `backwards`."""
    return forwards(x)


def _forwards(x: jax.Array, forwards: Layout, backwards: Layout) -> tuple[jax.Array, None]:
    return forwards(x), None


def _backwards(forwards: Layout, backwards: Layout, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (backwards(gradient),)


_both_ways.defvjp(_forwards, _backwards)


def laid_out(x: jax.Array, mesh: Mesh, spec: tuple[str | None, ...]) -> jax.Array:
    """Constrain the sharding of x to `spec`, for those of its axes that are automatic (not manual in a `shard_map`)."""
    outer_mesh = jax.sharding.get_abstract_mesh()
    automatic_spec = PartitionSpec(*(None if axis and is_manual(axis) else axis for axis in spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh if outer_mesh.empty else outer_mesh, automatic_spec))


def is_manual(axis: str) -> bool:
    """Whether the axis is manual here: the code is inside a `shard_map` over it."""
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def _kept(part: str | tuple[str, ...] | None, manual: set[str]) -> str | None:
    return part if isinstance(part, str) and part in manual else None
