"""Per-token log-probabilities without a `[tokens, vocabulary]` tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def token_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, chunk: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target and entropy (in nats) of its distribution, both float32 `[batch, time]`.

    hidden `[batch, time, model]`, weight `[vocabulary, model]`, targets `[batch, time]`. Float32 logits (float64 if hidden is)
    exist for `chunk` tokens at a time; the backward pass computes them again. There the weight's gradient is summed over chunks
    in the same precision, and cast at the end. The entropy has no gradient.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    logprobs, entropies = _TokenLogprobs.apply(flat, weight, targets.reshape(-1).long(), max(1, chunk), temperature)
    return logprobs.view(targets.shape), entropies.view(targets.shape)


def target_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-softmax of float32 logits `[..., vocabulary]` at the targets `[...]`, int64."""
    return _chosen(logits.log_softmax(-1), targets)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of softmax(logits), `[..., vocabulary]` -> `[...]`."""
    return _entropy(logits.log_softmax(-1))


class _TokenLogprobs(torch.autograd.Function):
    """hidden `[tokens, model]`, targets `[tokens]`. Only the inputs are stored for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropies = (hidden.new_empty(len(hidden), dtype=dtype) for _ in range(2))
        for piece in _pieces(len(hidden), chunk):
            logs = _logits(hidden[piece], weight, temperature).log_softmax(-1)
            logprobs[piece] = _chosen(logs, targets[piece])
            entropies[piece] = _entropy(logs)
        # The weight itself is saved, not a cast copy: under ZeRO-3 it is freed between the passes and gathered again.
        ctx.save_for_backward(hidden, weight, targets)
        ctx.chunk, ctx.temperature = chunk, temperature
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=cotangents.dtype)
        for piece in _pieces(len(hidden), ctx.chunk):
            back = _logits(hidden[piece], weight, ctx.temperature).softmax(-1).neg_()
            back.scatter_add_(-1, targets[piece, None], torch.ones_like(cotangents[piece, None]))
            back.mul_(cotangents[piece, None] / ctx.temperature)
            hidden_gradient[piece] = _product(back, weight, hidden.dtype)
            _add_product(weight_gradient, back.t(), hidden[piece], hidden.dtype)
        return hidden_gradient, weight_gradient.to(weight.dtype), None, None, None


def _pieces(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _logits(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    return _product(hidden, weight.t(), hidden.dtype).div_(temperature)


def _chosen(logs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logs.gather(-1, targets[..., None])[..., 0]


def _entropy(logs: torch.Tensor) -> torch.Tensor:
    return -logs.exp().mul_(logs).sum(-1)


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b with b rounded to `dtype`; summed and returned in float32, or in float64 if `dtype` is float64."""
    if _has_wide_products(a, dtype):
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32)
    wide = torch.promote_types(dtype, torch.float32)
    return a.to(wide) @ b.to(dtype).to(wide)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> None:
    """total += a @ b, without a temporary array of the total's size."""
    if _has_wide_products(a, dtype):
        torch.addmm(total, a.to(dtype), b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def _has_wide_products(a: torch.Tensor, dtype: torch.dtype) -> bool:
    # A GPU can return the float32 sums of products of 16-bit numbers; on a CPU the result is rounded to 16 bits.
    return a.device.type != "cpu" and dtype in (torch.bfloat16, torch.float16)
