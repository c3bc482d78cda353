"""Sampling of tokens on the device, from uniform random numbers made on the host."""

from __future__ import annotations

import torch

from shared.backend import BELOW_ONE


def draw(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """Token ids `[...]` int64 drawn from float32 logits `[..., V]` by inverse transform sampling.

    `uniforms` `[...]` holds one number in [0, 1) for each token, so the draw does not depend on the backend or the slot.
    Temperature 0 takes the largest logit. The filters act in the order top-k, top-p, min-p.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = filtered(logits / temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    # A parallel scan rounds each sum in its own way, so sums may differ even where a weight is 0. Such a token is never drawn.
    cumulative = weights.cumsum(dim=-1).where(weights > 0, 0.0)
    threshold = uniforms.clamp(max=BELOW_ONE)[..., None] * cumulative.amax(dim=-1, keepdim=True)
    return (cumulative > threshold).byte().argmax(dim=-1)  # the first token whose sum exceeds the threshold


def filtered(logits: torch.Tensor, *, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Logits `[..., V]` in which the tokens that the filters exclude are minus infinity."""
    if top_k:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1.0:
        ordered = logits.sort(dim=-1, descending=True).values
        weights = ordered.softmax(dim=-1)
        before = weights.cumsum(dim=-1) - weights
        smallest = ordered.where(before < top_p, torch.inf).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if min_p > 0.0:
        weights = logits.softmax(dim=-1)
        logits = logits.masked_fill(weights < min_p * weights.amax(dim=-1, keepdim=True), -torch.inf)
    return logits
