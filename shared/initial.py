"""A small policy with random weights as a Hugging Face directory: the same bits whichever backend trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shared import files
from shared.config import ModelConfig
from shared.randomness import generator

MAX_POSITIONS = 4_096


def write_model(model: ModelConfig, out: Path, *, vocab_size: int, bos: int, eos: int, pad: int, seed: int) -> None:
    """Write `config.json` and `model.safetensors` of a Phi-3-family decoder into the folder `out`.

    Weights are float32, normal with `model.initializer_range`, norm scales 1; each is keyed by (seed, its name).
    """
    save_file(random_weights(model, vocab_size, seed), out / "model.safetensors", metadata={"format": "pt"})
    files.write_json(out / "config.json", hugging_face_config(model, vocab_size, bos=bos, eos=eos, pad=pad))


def hugging_face_config(model: ModelConfig, vocab_size: int, *, bos: int, eos: int, pad: int) -> dict[str, Any]:
    """A `config.json` that Transformers loads; the last arguments are token ids."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "partial_rotary_factor": 1.0,
        "max_position_embeddings": MAX_POSITIONS,
        "original_max_position_embeddings": MAX_POSITIONS,
        "sliding_window": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }


def random_weights(model: ModelConfig, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Every tensor of the model by its Hugging Face name."""
    width, ffn = model.hidden_size, model.intermediate_size
    size = width // model.num_attention_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, width)}
    for index in range(model.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes |= {
            layer + "input_layernorm.weight": (width,),
            layer + "self_attn.qkv_proj.weight": (width + 2 * model.num_key_value_heads * size, width),
            layer + "self_attn.o_proj.weight": (width, width),
            layer + "post_attention_layernorm.weight": (width,),
            layer + "mlp.gate_up_proj.weight": (2 * ffn, width),
            layer + "mlp.down_proj.weight": (width, ffn),
        }
    shapes["model.norm.weight"] = (width,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab_size, width)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        drawn = generator(seed, "weights", name).standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(model.initializer_range)

    return {name: values(name, shape) for name, shape in shapes.items()}
