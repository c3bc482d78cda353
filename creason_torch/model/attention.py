"""Attention over the group layout, registered so that Transformers calls it.

Shape letters: B rows, T time, P prompt length, G completions of a group, C completion length, Q queries of each completion,
H heads, K key-value heads, R = H / K heads for each key-value head, N head size.

A network loaded with `attn_implementation=NAME` after `register()` is called as

    network.model(input_ids=..., position_ids=..., use_cache=False, group_layout=layout, valid=valid)

and passes `group_layout` and `valid` on to every layer. No family builds a causal mask then.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from shared.errors import InputError
from shared.grpo import GroupLayout

NAME = "creason_group"
MASKED = -1e30  # finite: a row without any visible key must not give NaN


def register() -> None:
    """Make `attn_implementation=NAME` known to Transformers."""
    AttentionInterface.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    group_layout: GroupLayout,
    valid: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that every attention layer calls: FlexAttention on a GPU, plain matrix products elsewhere.

    Shapes as in `group_attention`. `attention_mask` is None and unused, and so are Transformers' further arguments. Raises
    InputError for a model with attention dropout, or with a sliding window shorter than prompt and completion together.
    """
    if dropout:
        raise InputError(f"attention_dropout is {dropout} in config.json: it is not computed; set it to 0")
    longest = group_layout.prompt + group_layout.completion
    if sliding_window is not None and sliding_window < longest:
        raise InputError(
            f"sliding_window is {sliding_window} in config.json, shorter than prompt and completion together ({longest}): "
            "it is not computed; set it to null, or lower rollout.max_prompt_tokens or rollout.max_new_tokens"
        )
    attention = flex_group_attention if query.is_cuda else group_attention
    return attention(query, key, value, valid, group_layout, scale=scaling), None


def group_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    valid: torch.Tensor,
    layout: GroupLayout,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Causal attention in which a completion sees its prompt and itself, never its siblings.

    q `[B, H, T, N]`, k and v `[B, K, T, N]`, valid `[B, T]` (False: padding); returns `[B, T, H, N]`. Scores are multiplied by
    `scale` (None: N ** -0.5). Arithmetic is float32, or float64 if q is. The prompt needs one `[P, P]` array of scores. The
    completions need one `[G * C, P]` array over the prompt's keys, and a `[C, C]` array each. So no `[T, T]` array exists, and
    the prompt's keys are read once for all completions.
    """
    batch, heads, time, size = q.shape
    kv_heads, dtype = k.shape[1], q.dtype
    prompt, group, length = layout.prompt, layout.group, layout.completion
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    q = q.reshape(batch, kv_heads, -1, time, size) * (size**-0.5 if scale is None else scale)  # [B, K, R, T, N]
    prompt_k, prompt_v, prompt_valid = k[:, :, :prompt], v[:, :, :prompt], valid[:, :prompt]
    causal = _causal(prompt, q.device) & prompt_valid[:, None, None, None]
    out = _over_prompt(q[:, :, :, :prompt], prompt_k, prompt_v, causal)
    if group:
        own_q = q[:, :, :, prompt:].reshape(batch, kv_heads, -1, group, length, size)
        own_k = k[:, :, prompt:].reshape(batch, kv_heads, group, length, size)
        own_v = v[:, :, prompt:].reshape(batch, kv_heads, group, length, size)
        own_valid = valid[:, prompt:].reshape(batch, 1, 1, group, 1, length)
        causal = _causal(length, q.device) & own_valid
        prompt_there = prompt_valid[:, None, None, None, None]
        completions = _over_both(own_q, prompt_k, prompt_v, prompt_there, own_k, own_v, causal)
        out = torch.cat([out, completions.flatten(3, 4)], dim=3)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, time, heads, size).to(dtype)


def flex_group_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    valid: torch.Tensor,
    layout: GroupLayout,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """`group_attention` by FlexAttention. Compiled on a GPU: there fully masked blocks of scores are not computed.

    On a CPU it is not compiled, makes a `[T, T]` array and has no gradient (only for tests).
    """
    attention = _compiled(flex_attention) if q.is_cuda else flex_attention
    out = attention(q, k, v, block_mask=_block_mask(valid, layout), scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


# All layers of a network pass the same tensor `valid`, in the forward and in the backward pass, so one entry is enough.
@functools.lru_cache(maxsize=1)
def _block_mask(valid: torch.Tensor, layout: GroupLayout) -> BlockMask:
    # The closure holds only tensors: a Python number in it would be a constant, and each row length would be compiled again.
    sample = (torch.arange(layout.length, device=valid.device) - layout.prompt).div(
        max(1, layout.completion), rounding_mode="floor"
    )

    def visible(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        of_prompt_or_own = (sample[key] < 0) | (sample[key] == sample[query])
        # Padding sees itself, so that every row sees a key.
        return ((key <= query) & of_prompt_or_own & valid[b, key]) | (key == query)

    build = _compiled(create_block_mask) if valid.is_cuda else create_block_mask
    return build(visible, len(valid), None, layout.length, layout.length, device=valid.device)


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)


def _causal(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def _over_prompt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Attention over a prompt: q `[B, K, R, Q, N]`, already scaled, k and v `[B, K, P, N]`; returns the shape of q.

    `visible` broadcasts to `[B, K, R, Q, P]`.
    """
    scores = (q.flatten(2, 3) @ k.mT).unflatten(2, q.shape[2:4])
    weights = torch.where(visible, scores, MASKED).softmax(dim=-1)
    return (weights.flatten(2, 3) @ v).unflatten(2, q.shape[2:4])


def _over_both(
    q: torch.Tensor,
    prompt_k: torch.Tensor,
    prompt_v: torch.Tensor,
    prompt_visible: torch.Tensor,
    own_k: torch.Tensor,
    own_v: torch.Tensor,
    own_visible: torch.Tensor,
) -> torch.Tensor:
    """Attention of completions over their shared prompt and over themselves; q and the result are `[B, K, R, G, Q, N]`.

    q is already scaled. prompt_k and prompt_v `[B, K, P, N]`, own_k and own_v `[B, K, G, C, N]`. One softmax over both score
    arrays without joining them: joining would copy the larger one.
    """
    shared, group, queries = q.shape[2:5]
    over_prompt = (q.flatten(2, 4) @ prompt_k.mT).unflatten(2, (shared, group, queries))
    over_prompt = torch.where(prompt_visible, over_prompt, MASKED)
    over_own = (q.transpose(2, 3).flatten(3, 4) @ own_k.mT).unflatten(3, (shared, queries)).transpose(2, 3)
    over_own = torch.where(own_visible, over_own, MASKED)

    top = torch.maximum(over_prompt.amax(-1), over_own.amax(-1)).detach()[..., None]
    prompt_weights, own_weights = torch.exp(over_prompt - top), torch.exp(over_own - top)
    total = prompt_weights.sum(-1, keepdim=True) + own_weights.sum(-1, keepdim=True)
    from_prompt = (prompt_weights.flatten(2, 4) @ prompt_v).unflatten(2, (shared, group, queries))
    from_own = own_weights.transpose(2, 3).flatten(3, 4) @ own_v
    return (from_prompt + from_own.unflatten(3, (shared, queries)).transpose(2, 3)) / total
