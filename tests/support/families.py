"""Tiny networks with random weights of every family that the backends compute, and of the variants within them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from parity.families import LLAMA3, random_network

SWITCH = 48  # tokens up to which the longrope variants use their short factors
FACTORS = {
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.3, 2.0, 3.5, 6.0, 11.0, 20.0, 32.0],
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, **FACTORS}
LONG = {"original_max_position_embeddings": SWITCH, "max_position_embeddings": 32 * SWITCH}
YARN = {"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}

SHAPE: dict[str, Any] = {
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
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {}),
    "phi3 partial": (
        "phi3",
        {"rope_parameters": {"rope_theta": 250_000.0, "partial_rotary_factor": 0.75}, "rms_norm_eps": 1e-2},
    ),
    "phi3 longrope": ("phi3", LONG | {"rope_parameters": LONGROPE}),
    # Phi-4-mini: a part of each head is rotated, and the tables are tied.
    "phi4 mini": (
        "phi3",
        LONG
        | {
            "rope_parameters": {
                **LONGROPE,
                "partial_rotary_factor": 0.75,
                **{name: values[:6] for name, values in FACTORS.items()},
            },
            "tie_word_embeddings": True,
        },
    ),
    "llama2": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama linear tied": ("llama", {"rope_parameters": LINEAR, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_theta": 1_000_000.0}}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    "qwen3 biased": ("qwen3", {"head_dim": 8, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": None, "rope_parameters": {"rope_theta": 1_000_000.0}}),
    "mistral head": ("mistral", {"sliding_window": 4_096, "head_dim": 32}),
    "olmo2": ("olmo2", {"rope_parameters": {"rope_theta": 500_000.0}}),
    "olmo2 biased": ("olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
}


def tiny_network(family: str, *, attention: str = "eager", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Two layers, 4 heads over 2 key-value heads, 320 tokens, float32; biases and norm scales are random too."""
    longrope = {"original_max_position_embeddings": SHAPE["max_position_embeddings"]} if family == "phi3" else {}
    return random_network(family, SHAPE | longrope | overrides, seed=seed, attention=attention)


def tiny_variant(variant: str, **overrides: Any) -> PreTrainedModel:
    """The network of an entry of VARIANTS; `overrides` as in `tiny_network`."""
    family, options = VARIANTS[variant]
    return tiny_network(family, **(options | overrides))
