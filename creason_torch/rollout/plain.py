"""Log-probabilities from one forward pass without caches over a model directory, layer by layer: the check of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from creason_torch.model.decoder import StoredWeights, check_tables, fix_rotation, read_config
from creason_torch.model.logprobs import target_logprobs
from shared.backend import Completion, scoring_temperature
from shared.config import RunConfig


@torch.inference_mode()
def completion_logprobs(
    config: RunConfig,
    folder: Path,
    device: torch.device,
    prompts: Sequence[np.ndarray],
    completions: Sequence[Completion],
) -> list[np.ndarray]:
    """See `shared.backend.Backend.plain_logprobs`. The network and its attention are Hugging Face's own.

    Only one layer's weights are on the device at a time.
    """
    if not completions:
        return []
    pairs = zip(prompts, completions, strict=True)
    texts = [torch.from_numpy(np.concatenate([prompt, completion.tokens])).long() for prompt, completion in pairs]
    tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)  # padding on the right, which no token sees
    with StoredWeights(folder) as stored:
        network = _network(config, folder, device, stored)
        hidden = network.model(input_ids=tokens, use_cache=False).last_hidden_state
        # The token at t is scored by the state at t - 1.
        scoring_states = [slice(len(prompt) - 1, len(text) - 1) for prompt, text in zip(prompts, texts)]
        head = stored.read("model.embed_tokens.weight" if network.config.tie_word_embeddings else "lm_head.weight")
    head = head.to(device, hidden.dtype).float()
    temperature = scoring_temperature(config.grpo, config.rollout.temperature)
    results = []
    for states, scored_by, completion in zip(hidden, scoring_states, completions):
        logits = nn.functional.linear(states[scored_by].float(), head) / temperature
        targets = torch.from_numpy(completion.tokens).long().to(device)
        results.append(target_logprobs(logits, targets).cpu().numpy())
    return results


def _network(config: RunConfig, folder: Path, device: torch.device, stored: StoredWeights) -> PreTrainedModel:
    """Hugging Face's network. Each part of it reads its weights when it is called, and frees them afterwards."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(
            read_config(folder), dtype=getattr(torch, config.learner.compute_dtype), attn_implementation="sdpa"
        ).eval()
    network.model.rotary_emb.to_empty(device=device)
    fix_rotation(network, config.longest_sequence)
    check_tables(network)
    names = {module: name for name, module in network.named_modules()}
    for part in (network.model.embed_tokens, *network.model.layers, network.model.norm):
        part.register_forward_pre_hook(_filled(stored, names[part], device))
        part.register_forward_hook(_emptied)
    return network


def _filled(stored: StoredWeights, name: str, device: torch.device) -> Any:
    def hook(part: nn.Module, _: Any) -> None:
        part.to_empty(device=device)
        for own, weight in part.named_parameters():
            weight.copy_(stored.read(f"{name}.{own}"))

    return hook


def _emptied(part: nn.Module, *_: Any) -> None:
    part.to("meta")
