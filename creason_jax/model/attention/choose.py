"""Which kernel computes attention over the group layout, and how it is spread over a mesh."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from creason_jax.axes import BATCH, TENSOR
from creason_jax.model.attention import chunked, flash, reference, splash
from shared.grpo import GroupLayout

Attention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, GroupLayout], jax.Array]
KERNELS: dict[str, Attention] = {
    "reference": reference.group_attention,
    "chunked": chunked.group_attention,
    "flash": flash.group_attention,
    "splash": splash.group_attention,
}
BY_DEVICE = {"flash", "splash"}  # kernels that the compiler cannot split: each device calls them on its rows and heads
LARGE_SCORES = 2**26  # the most attention scores that a device may hold in one array (256 MiB in float32)
SHORT_ROW = (
    1_024  # tokens; a kernel works in blocks of at least 128, so in a shorter row it would compute mostly padding
)


def group_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    layout: GroupLayout,
    *,
    mesh: Mesh | None = None,
    kernel: str | None = None,
) -> jax.Array:
    """Causal attention in which a completion sees its prompt and itself, never its siblings.

    q `[B, T, H, N]`, k and v `[B, T, K, N]`, valid `[B, T]` (False at padding, which comes after the prompt and after each
    completion). Returns `[B, T, H, N]`; values at padding are arbitrary but finite. `mesh`: the devices over which rows and
    heads are split (None: one device). `kernel`: a name in `KERNELS` to use it; None lets `choose` decide.
    """
    # Inside the learner each device already has its own rows; then only the heads remain to be split.
    outer_mesh = jax.sharding.get_abstract_mesh()
    axis_sizes = (
        {}
        if mesh is None
        else {name: mesh.shape[name] for name in mesh.axis_names if name not in outer_mesh.manual_axes}
    )
    ways = math.prod(axis_sizes.values())
    if kernel is None:
        kernel, reason = choose(platform_of(mesh), q.dtype, q.shape, layout, ways)
        _say(kernel, reason)
    attend = KERNELS[kernel]
    if kernel not in BY_DEVICE or mesh is None or ways == 1:
        return attend(q, k, v, valid, layout)
    k, v = (_split_evenly(x, q.shape[2], axis_sizes[TENSOR]) for x in (k, v))
    rows = tuple(axis for axis in BATCH if axis in axis_sizes)
    split = PartitionSpec(rows, None, TENSOR, None)
    by_device = jax.shard_map(
        lambda q, k, v, valid: attend(q, k, v, valid, layout),
        mesh=mesh if outer_mesh.empty else outer_mesh,
        in_specs=(split, split, split, PartitionSpec(rows, None)),
        out_specs=split,
        axis_names=set(axis_sizes),
        check_vma=False,  # the kernels do not declare over which axes their results vary
    )
    return by_device(q, k, v, valid)


def choose(
    platform: str, dtype: jnp.dtype, shape: tuple[int, ...], layout: GroupLayout, ways: int = 1
) -> tuple[str, str]:
    """Choose the kernel; returns its name and the reason.

    `shape`: of the queries, `[B, T, H, N]`. `ways`: the number of devices over which rows and heads are split.
    """
    batch, _, heads, size = shape
    scores = batch * heads * max(layout.prompt**2, layout.group * layout.completion * layout.prompt) // ways
    if platform == "tpu" and layout.length >= SHORT_ROW:
        return "splash", "a TPU, and a row of more than a few blocks"
    if platform in ("gpu", "cuda") and layout.length >= SHORT_ROW:
        refused = flash.refusal(dtype, size, layout)
        if refused is None:
            return "flash", f"a GPU, {jnp.dtype(dtype).name}, heads of {size}"
        return "chunked", f"a GPU, but cuDNN's flash attention {refused}"
    if scores > LARGE_SCORES:
        return "chunked", f"no kernel for {platform}, and {scores:,} scores at once would be too many"
    return "reference", f"short rows on {platform}"


def platform_of(mesh: Mesh | None) -> str:
    """The platform that will compute: the one of the mesh's devices (which may be absent), or JAX's default."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _split_evenly(x: jax.Array, heads: int, ways: int) -> jax.Array:
    """Keys or values `[B, T, K, N]` with each head repeated, so that `ways` divides the number of heads.

    Example: 40 query heads, 10 key-value heads, 4 devices. Each key-value head is repeated twice; then a device holds the 5
    that its 10 query heads read. Nothing is repeated where `ways` already divides the heads.
    """
    kv_heads = x.shape[2]
    return jnp.repeat(x, math.lcm(kv_heads, ways) // kv_heads, axis=2)


@functools.cache
def _say(kernel: str, reason: str) -> None:
    logging.getLogger(__name__).info("attention: %s (%s)", kernel, reason)
