"""Tiny networks with random weights of every family that the backend computes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def tiny_network(family: str, *, attention: str = "eager", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Two layers, 4 heads over 2 key-value heads, 320 tokens, float32; biases and norm scales are random too."""
    fields = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.08,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    if family == "phi3":
        fields["original_max_position_embeddings"] = 512
    config = AutoConfig.for_model(family, **(fields | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    weight.add_(0.2 * torch.randn_like(weight))
    return network
