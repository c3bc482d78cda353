"""Splash attention, JAX's Pallas kernel for TPUs, over the group layout in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    SegmentIds,
    make_splash_mha,
    splash_attention_mask,
)

from shared.grpo import GroupLayout

# Queries and keys in one block of the kernel. A block is a multiple of 128, the width of a TPU's vector registers.
SMALLEST_BLOCK, LARGEST_BLOCK = 128, 512
VALID, PADDING = 0, 1  # segment ids of keys: every query has VALID, so it never sees padding


class GroupMask(splash_attention_mask.Mask):
    """The causal mask in which a completion sees its prompt and itself.

    Blocks of the mask are made when the kernel asks for them, so no `[T, T]` array exists.
    """

    def __init__(self, layout: GroupLayout):
        self.layout = layout
        position = np.arange(layout.length)
        inside = (position - layout.prompt) // max(1, layout.completion) * layout.completion
        # The position at which the query's own prompt or completion begins.
        self.start = np.where(position < layout.prompt, 0, layout.prompt + inside)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole mask, `(T, T)`."""
        return self.layout.length, self.layout.length

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (range(*part.indices(self.layout.length)) for part in index)
        start = self.start[rows.start : rows.stop]
        shape = len(rows), len(columns)
        first, last = columns[0], columns[-1]
        if last <= rows[0] and (last < self.layout.prompt or start.max() <= first):
            return np.ones(shape, bool)
        if first > rows[-1] or (first >= self.layout.prompt and start.min() > last):
            return np.zeros(shape, bool)
        queries, keys = np.asarray(rows)[:, None], np.asarray(columns)
        return (keys <= queries) & ((keys < self.layout.prompt) | (keys >= start[:, None]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupMask) and other.layout == self.layout

    def __hash__(self) -> int:
        return hash((GroupMask, self.layout))


def group_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, layout: GroupLayout, interpret: bool = False
) -> jax.Array:
    """See `choose.group_attention`; `interpret` runs the kernel without a TPU, for the tests.

    The prompt and each completion are padded to whole blocks. Then every block of the mask is all true, all false, or the same
    causal triangle.
    """
    block = _block(layout)
    wide = GroupLayout(
        prompt=_rounded(layout.prompt, block), group=layout.group, completion=_rounded(layout.completion, block)
    )
    size = q.shape[-1]
    kernel = _kernel(wide, q.shape[2], block, interpret)
    q, k, v = (_widened(x, layout, wide).swapaxes(1, 2) for x in (q * size**-0.5, k, v))  # [B, heads, T, N]
    keys = jnp.where(_widened(valid, layout, wide), VALID, PADDING).astype(jnp.int32)
    out = jax.vmap(kernel)(q, k, v, SegmentIds(jnp.full_like(keys, VALID), keys))
    return _narrowed(out.swapaxes(1, 2), layout, wide)


@functools.lru_cache(maxsize=32)
def _kernel(layout: GroupLayout, heads: int, block: int, interpret: bool) -> Callable[..., jax.Array]:
    mask = splash_attention_mask.MultiHeadMask([GroupMask(layout)] * heads)
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    with jax.ensure_compile_time_eval():  # the cached kernel's tables are used in later traces too
        return make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def _block(layout: GroupLayout) -> int:
    """The block size: the largest power of two up to the shorter part of the row, so that no block is mostly padding."""
    shorter = min(layout.prompt, layout.completion) if layout.group else layout.prompt
    return min(LARGEST_BLOCK, max(SMALLEST_BLOCK, 2 ** (shorter.bit_length() - 1)))


def _rounded(length: int, block: int) -> int:
    return -(-length // block) * block


def _widened(x: jax.Array, layout: GroupLayout, wide: GroupLayout) -> jax.Array:
    """`[B, T, ...]` with zeros added after the prompt and after each completion, as `wide` says."""
    if layout == wide:
        return x
    batch, rest = x.shape[0], x.shape[2:]
    beyond = [(0, 0)] * len(rest)
    prompt = jnp.pad(x[:, : layout.prompt], [(0, 0), (0, wide.prompt - layout.prompt), *beyond])
    if not layout.group:
        return prompt
    own = x[:, layout.prompt :].reshape(batch, layout.group, layout.completion, *rest)
    own = jnp.pad(own, [(0, 0), (0, 0), (0, wide.completion - layout.completion), *beyond])
    return jnp.concatenate([prompt, own.reshape(batch, -1, *rest)], axis=1)


def _narrowed(x: jax.Array, layout: GroupLayout, wide: GroupLayout) -> jax.Array:
    """The inverse of `_widened`."""
    if layout == wide:
        return x
    batch, rest = x.shape[0], x.shape[2:]
    prompt = x[:, : layout.prompt]
    if not layout.group:
        return prompt
    own = x[:, wide.prompt :].reshape(batch, layout.group, wide.completion, *rest)[:, :, : layout.completion]
    return jnp.concatenate([prompt, own.reshape(batch, -1, *rest)], axis=1)
