"""What float64 says: Hugging Face's own network, the NumPy objective, `torch.optim.AdamW`. Nothing here is a backend's.

The objective's gradient comes from the NumPy reference by central differences and goes on through Hugging Face's network
by automatic differentiation, so neither backend's objective has a part in it.
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

STEP = 1e-6  # nats, of the central differences


class Update(NamedTuple):
    """One optimizer step: its metrics and, by Hugging Face name, the gradient before clipping and the weights after."""

    metrics: dict[str, float]
    gradient: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


def network(folder: Path) -> PreTrainedModel:
    """The model in `folder` in float64 with Transformers' plain attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    # Transformers gives the embedding of the pad token no gradient; a recorded completion may hold that token like any other.
    model.get_input_embeddings().padding_idx = None
    return model


def weights(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Every parameter by name; a tied one once."""
    return {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}


def logprobs(model: PreTrainedModel, batch: GroupBatch) -> torch.Tensor:
    """`[completions, C]` in the order of `completion_view`: each completion alone behind its prompt, nothing padded."""
    return torch.stack([_row(model, *each) for each in sequences(batch)])


def sequences(batch: GroupBatch) -> list[tuple[np.ndarray, int, int]]:
    """(token ids of prompt and completion, length of the prompt, C) of every completion."""
    rows = grpo.separate_rows(batch)
    found = []
    for tokens, groups in zip(rows.tokens, rows.groups):
        there = groups >= 0
        found.append((tokens[there], int(there[: rows.layout.prompt].sum()), rows.layout.completion))
    return found


def _row(model: PreTrainedModel, ids: np.ndarray, read: int, longest: int) -> torch.Tensor:
    tokens = torch.from_numpy(ids).long()
    logits = model(tokens[None], use_cache=False).logits[0]
    own = torch.log_softmax(logits[read - 1 : -1], dim=-1).gather(1, tokens[read:, None])[:, 0]
    return torch.nn.functional.pad(own, (0, longest - len(own)))


def objective(scored: np.ndarray, batch: GroupBatch, config: RunConfig) -> Sums:
    """The NumPy objective's sums at log-probabilities `[completions, C]`."""
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
    """The batch's arrays as rows of completions; those that are None left out."""
    names = ("advantages", "completion_mask", "old_logprobs", "ref_logprobs", "rollout_logprobs")
    arrays = {name: getattr(batch, name) for name in names}
    return {name: grpo.completion_view(array, batch.layout) for name, array in arrays.items() if array is not None}


def objective_gradient(scored: np.ndarray, batch: GroupBatch, config: RunConfig) -> np.ndarray:
    """d(loss) / d(log-probability) `[completions, C]` by central differences of the NumPy objective.

    The batch holds old log-probabilities, so that no part of the objective stops a gradient.
    """
    assert batch.old_logprobs is not None
    mask = grpo.completion_view(batch.completion_mask, batch.layout)
    found = np.zeros_like(scored)
    for place in zip(*np.nonzero(mask)):
        above, below = scored.copy(), scored.copy()
        above[place] += STEP
        below[place] -= STEP
        found[place] = (objective(above, batch, config).loss - objective(below, batch, config).loss) / (2 * STEP)
    return found / divisor(batch, config)


def divisor(batch: GroupBatch, config: RunConfig) -> float:
    """What the sums of the whole batch are divided by."""
    mask = grpo.completion_view(batch.completion_mask, batch.layout)
    sums = objective(np.zeros(mask.shape), batch, config)
    return grpo.denominator(sums, config.grpo, config.rollout.max_new_tokens)


def updates(folder: Path, batches: list[GroupBatch], config: RunConfig) -> list[Update]:
    """Optimizer steps by `torch.optim.AdamW`, Hugging Face's schedule, and clipping by limit / norm, all float64."""
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
    """What metrics are held against where their terms cancel or are differences of log-probabilities.

    The loss: the mean size of an advantage. KL and gap: means of differences, each rounded as a log-probability is.
    """
    counted = batch.completion_mask > 0
    return {
        "loss": float(np.abs(batch.advantages[counted]).mean()),
        "kl": 1.0,
        "logprob_gap": 1.0,
        "logprob_gap_max": 10.0,
    }


def schedule(settings: OptimizerConfig, steps: int) -> list[float]:
    """The learning rates of `steps` updates as Hugging Face's scheduler gives them, warm-up rounded up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    warmup = int(np.ceil(settings.warmup_ratio * steps))
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found
