"""The float64 reference: Hugging Face's own network, the NumPy objective and `torch.optim.AdamW`. It uses no code of a backend.

The objective's gradient with respect to log-probabilities is taken from the NumPy objective by central differences. Automatic
differentiation carries it through Hugging Face's network. So no backend's objective takes part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from shared import grpo
from shared.config import OptimizerConfig, RunConfig
from shared.grpo import GroupBatch, Sums

STEP = 1e-6  # step of the central differences, in nats


class Update(NamedTuple):
    """One optimizer step: its metrics, the gradient before clipping, and the weights after the step, by Hugging Face names."""

    metrics: dict[str, float]
    gradient: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


def network(folder: Path) -> PreTrainedModel:
    """The model in `folder` in float64, with Transformers' "eager" attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    # Transformers gives the pad token's embedding no gradient, but a recorded completion may hold that token like any other.
    model.get_input_embeddings().padding_idx = None
    return model


def weights(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Every parameter by its Hugging Face name; a tied parameter has only its first name."""
    return {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}


def logprobs(model: PreTrainedModel, batch: GroupBatch) -> torch.Tensor:
    """Log-probabilities `[completions, C]` in the order of `completion_view`.

    Each completion is computed in a call of its own, after its prompt and without padding; shorter ones end with zeros.
    """
    return torch.stack([_row(model, *sequence) for sequence in sequences(batch)])


def sequences(batch: GroupBatch) -> list[tuple[np.ndarray, int, int]]:
    """For every completion: (token ids of prompt and completion, length of the prompt, C)."""
    rows = grpo.separate_rows(batch)
    result = []
    for tokens, groups in zip(rows.tokens, rows.groups):
        valid = groups >= 0
        result.append((tokens[valid], int(valid[: rows.layout.prompt].sum()), rows.layout.completion))
    return result


def _row(model: PreTrainedModel, token_ids: np.ndarray, prompt_length: int, longest: int) -> torch.Tensor:
    tokens = torch.from_numpy(token_ids).long()
    logits = model(tokens[None], use_cache=False).logits[0]
    own = torch.log_softmax(logits[prompt_length - 1 : -1], dim=-1).gather(1, tokens[prompt_length:, None])[:, 0]
    return torch.nn.functional.pad(own, (0, longest - len(own)))


def objective(scored: np.ndarray, batch: GroupBatch, config: RunConfig) -> Sums:
    """The NumPy objective's sums for log-probabilities `scored` `[completions, C]`."""
    view = completions(batch)
    return grpo.objective(
        scored,
        view["advantages"],
        view["completion_mask"],
        config.grpo,
        row_mask=grpo.real_completions(batch.groups, batch.layout),
        old_logprobs=view.get("old_logprobs"),
        ref_logprobs=view.get("ref_logprobs"),
        rollout_logprobs=view.get("rollout_logprobs"),
    )


def completions(batch: GroupBatch) -> dict[str, np.ndarray]:
    """The batch's arrays as `[completions, C]`; arrays that are None are left out."""
    names = ("advantages", "completion_mask", "old_logprobs", "ref_logprobs", "rollout_logprobs")
    arrays = {name: getattr(batch, name) for name in names}
    return {name: grpo.completion_view(array, batch.layout) for name, array in arrays.items() if array is not None}


def objective_gradient(scored: np.ndarray, batch: GroupBatch, config: RunConfig) -> np.ndarray:
    """d(loss) / d(log-probability) `[completions, C]` by central differences of the NumPy objective.

    The batch must hold old log-probabilities: without them the objective has stop-gradients, which differences do not see.
    """
    assert batch.old_logprobs is not None
    mask = grpo.completion_view(batch.completion_mask, batch.layout)
    gradient = np.zeros_like(scored)
    for index in zip(*np.nonzero(mask)):
        above, below = scored.copy(), scored.copy()
        above[index] += STEP
        below[index] -= STEP
        gradient[index] = (objective(above, batch, config).loss - objective(below, batch, config).loss) / (2 * STEP)
    return gradient / divisor(batch, config)


def divisor(batch: GroupBatch, config: RunConfig) -> float:
    """The number that divides the sums of the whole batch."""
    mask = grpo.completion_view(batch.completion_mask, batch.layout)
    sums = objective(np.zeros(mask.shape), batch, config)
    return grpo.denominator(sums, config.grpo, config.rollout.max_new_tokens)


def updates(folder: Path, batches: list[GroupBatch], config: RunConfig) -> list[Update]:
    """Optimizer steps in float64: `torch.optim.AdamW`, Hugging Face's schedule, and clipping by limit / norm."""
    model = network(folder)
    settings = config.optimizer
    adam = torch.optim.AdamW(
        model.parameters(), betas=(settings.b1, settings.b2), eps=settings.eps, weight_decay=settings.weight_decay
    )
    rates = schedule(settings, len(batches))
    return [_update(model, adam, batch, config, rate) for batch, rate in zip(batches, rates)]


def _update(model: PreTrainedModel, adam: Any, batch: GroupBatch, config: RunConfig, rate: float) -> Update:
    scored = logprobs(model, batch)
    values = scored.detach().numpy()
    adam.zero_grad()
    scored.backward(torch.from_numpy(objective_gradient(values, batch, config)))
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    gradient = {name: grad.numpy().copy() for name, grad in grads.items()}
    norm = float(torch.nn.utils.get_total_norm(list(grads.values())))
    for grad in grads.values():
        grad *= min(1.0, config.optimizer.max_grad_norm / norm)
    adam.param_groups[0]["lr"] = rate
    adam.step()
    described = grpo.metrics(objective(values, batch, config), config.grpo, config.rollout.max_new_tokens)
    described |= {"grad_norm": norm, "learning_rate": rate, "mean_logprob": _mean_logprob(values, batch)}
    described.pop("entropy")
    return Update(described, gradient, weights(model))


def _mean_logprob(scored: np.ndarray, batch: GroupBatch) -> float:
    counted = grpo.completion_view(batch.completion_mask, batch.layout) > 0
    return float(scored[counted].mean())


def sizes(batch: GroupBatch) -> dict[str, float]:
    """The size to which the error of a metric is compared, for metrics whose terms cancel each other.

    The loss: the mean absolute advantage. KL and gap: means of differences of log-probabilities, so their rounding errors are
    those of log-probabilities and not relative to the small metric.
    """
    counted = batch.completion_mask > 0
    return {
        "loss": float(np.abs(batch.advantages[counted]).mean()),
        "kl": 1.0,
        "logprob_gap": 1.0,
        "logprob_gap_max": 10.0,
    }


def schedule(settings: OptimizerConfig, steps: int) -> list[float]:
    """The learning rates of `steps` updates by Hugging Face's cosine scheduler; the number of warm-up steps is rounded up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    warmup = int(np.ceil(settings.warmup_ratio * steps))
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates
