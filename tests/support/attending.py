"""Random queries, keys and values in the group layout, and a naive attention over them in float64."""

from __future__ import annotations

import dataclasses

import numpy as np

from shared.grpo import GroupBatch, GroupLayout, pack

SIZE = 8  # of a head


@dataclasses.dataclass(frozen=True)
class Shape:
    """One compiled program: heads for each key-value head, key-value heads, rows, layout."""

    shared: int
    kv_heads: int
    rows: int
    layout: GroupLayout


def random_groups(shape: Shape, prompt_lengths: list[int], lengths: list[list[int]]) -> GroupBatch:
    prompts = [np.ones(n, np.int32) for n in prompt_lengths]
    completions = [[np.ones(n, np.int32) for n in row] for row in lengths]
    return pack(prompts, completions, shape.layout, advantages=np.zeros((shape.rows, shape.layout.group)))


def random_arrays(shape: Shape, time: int, seed: int) -> list[np.ndarray]:
    """q, k, v and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    heads = [shape.kv_heads * shape.shared, shape.kv_heads, shape.kv_heads, shape.kv_heads * shape.shared]
    return [rng.normal(0, 1.5, (shape.rows, time, count, SIZE)).astype(np.float32) for count in heads]


def full_mask(groups: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """`[B, T, T]`: true where the first position sees the second."""
    time = groups.shape[1]
    earlier = np.arange(time)[:, None] >= np.arange(time)
    same_group = (groups[:, :, None] == groups[:, None]) & (groups >= 0)[:, None]
    same_segment = segments[:, :, None] == segments[:, None]
    return earlier & same_group & (same_segment | (segments == 0)[:, None])


def naive(q, k, v, cotangent, mask):
    """Output and the gradients of q, k, v in float64, with a `[T, T]` array for each head."""
    q, k, v, cotangent = (np.asarray(each, np.float64) for each in (q, k, v, cotangent))
    shared = q.shape[2] // k.shape[2]
    wide_k, wide_v = k.repeat(shared, axis=2), v.repeat(shared, axis=2)
    scale = 1 / np.sqrt(q.shape[-1])
    scores = np.einsum("bthn,bshn->bhts", q, wide_k) * scale
    scores = np.where(mask[:, None], scores, -np.inf)
    top = np.where(mask[:, None].any(-1, keepdims=True), scores.max(-1, keepdims=True), 0)
    weights = np.exp(scores - top)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    back = np.einsum("bthn,bshn->bhts", cotangent, wide_v)
    back = weights * (back - (back * weights).sum(-1, keepdims=True)) * scale
    narrow = (*k.shape[:3], shared, SIZE)
    return (
        np.einsum("bhts,bshn->bthn", weights, wide_v),
        np.einsum("bhts,bshn->bthn", back, wide_k),
        np.einsum("bhts,bthn->bshn", back, q).reshape(*k.shape[:2], k.shape[2], shared, SIZE).sum(3),
        np.einsum("bhts,bthn->bshn", weights, cotangent).reshape(narrow).sum(3),
    )


def random_case(
    shape: Shape, prompts: list[int], lengths: list[list[int]], seed: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """q, k, v and a cotangent, which positions are no padding `[B, T]`, and who sees whom `[B, T, T]`.

    Keys and values of padding are garbage, of which nothing may reach a result.
    """
    if shape.layout.group:
        batch = random_groups(shape, prompts, lengths)
        groups, segments = batch.groups, batch.segments
    else:
        groups = np.where(np.arange(shape.layout.prompt) < np.array(prompts)[:, None], 0, -1)
        segments = np.zeros_like(groups)
    valid = groups >= 0
    q, k, v, cotangent = random_arrays(shape, shape.layout.length, seed)
    cotangent = np.where(valid[..., None, None], cotangent, 0)
    k, v = (np.where(valid[..., None, None], each, 1e3) for each in (k, v))
    return [q, k, v, cotangent], valid, full_mask(groups, segments)
