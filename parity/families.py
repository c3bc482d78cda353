"""Tiny random models of every family that both backends compute, written by Transformers as users' models are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shared.errors import InputError

HEADS, KV_HEADS, SIZE, LAYERS, VOCABULARY = 4, 2, 32, 3, 320
EOS = 3

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HEADS * SIZE,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 32_768,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PHI3: dict[str, Any] = {"original_max_position_embeddings": 32_768}


def _longrope(original: int) -> dict[str, Any]:
    """Phi-4-mini's shape: three quarters of a head rotated, factors that change beyond `original` positions."""
    rotated = SIZE * 3 // 8
    steps = [index / rotated for index in range(rotated)]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + step for step in steps],
        "long_factor": [1.5 + 4.0 * step for step in steps],
    }
    fields = {"original_max_position_embeddings": original, "max_position_embeddings": 8 * original}
    return fields | {"rope_parameters": rope, "tie_word_embeddings": True}


# Family: what Transformers calls it, and the fields in which it differs from COMMON.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", PHI3),
    "phi3-partial": ("phi3", PHI3 | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    # Every recorded sequence is longer than 16 tokens and shorter than 4,096, so Transformers, which decides for each
    # batch by its longest sequence, takes the same factors as both backends, which decide once for a run.
    "phi3-longrope": ("phi3", _longrope(16)),
    "phi3-longrope-short": ("phi3", _longrope(4_096)),
    "llama2": ("llama", {"num_key_value_heads": HEADS}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {"rope_theta": 1_000_000.0}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 2 * SIZE, "rope_theta": 1_000_000.0}),
    "mistral": ("mistral", {"head_dim": 2 * SIZE, "rope_theta": 1_000_000.0, "sliding_window": None}),
    "olmo2": ("olmo2", {"rope_theta": 500_000.0}),
}


def write_family(family: str, folder: Path, *, seed: int = 0) -> None:
    """Write a model of `family` into `folder`. Raises InputError for a family that is not known."""
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    kind, fields = FAMILIES[family]
    random_network(kind, COMMON | fields, seed=seed).save_pretrained(folder)


def random_network(kind: str, fields: Mapping[str, Any], *, seed: int, attention: str = "sdpa") -> PreTrainedModel:
    """A float32 network of Transformers' family `kind`. Biases and norm scales are random too, so that one left out shows.

    Where `fields` says nothing of a dropout it is 0, not Transformers' default.
    """
    config = AutoConfig.for_model(kind, **fields)
    for name in config.to_dict():
        if name.endswith(("dropout", "pdrop")) and name not in fields:
            setattr(config, name, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        with torch.no_grad():
            # Transformers makes the pad token's row 0, which the gradient of the first norm would divide by.
            network.get_input_embeddings().weight[fields["pad_token_id"]].normal_(0, fields["initializer_range"])
            for name, weight in network.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    weight.add_(0.2 * torch.randn_like(weight))
    return network
