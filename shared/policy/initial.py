"""Creates a small policy with random weights as a Hugging Face directory. Both backends start from exactly the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shared.policy.families import FAMILIES, MODEL_CONFIG, POSITIONS
from shared.policy.section import ModelConfig
from shared.policy.weight_files import SINGLE
from shared.randomness import generator
from shared.storage import files

MAX_POSITIONS = 4_096


def write_model(model: ModelConfig, out: Path, *, vocab_size: int, bos: int, eos: int, pad: int, seed: int) -> None:
    """Write `config.json` and `model.safetensors` of a new decoder into the folder `out`.

    `bos`, `eos` and `pad` are token ids. The weights are those of `random_weights`.
    """
    save_file(random_weights(model, vocab_size, seed), out / SINGLE, metadata={"format": "pt"})
    files.write_json(out / MODEL_CONFIG, hugging_face_config(model, vocab_size, bos=bos, eos=eos, pad=pad))


def hugging_face_config(model: ModelConfig, vocab_size: int, *, bos: int, eos: int, pad: int) -> dict[str, Any]:
    """The content of a `config.json` that Transformers can load. `bos`, `eos` and `pad` are token ids."""
    family = FAMILIES[model.family]
    config = {
        "architectures": [family.architecture],
        "model_type": model.family,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "max_position_embeddings": MAX_POSITIONS,
        "sliding_window": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": "float32",
        "dtype": "float32",  # as newer versions of Transformers spell it
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    config |= {name: MAX_POSITIONS if value == POSITIONS else value for name, value in family.new_model_fields.items()}
    if "head_dim" in family.defaults:
        config["head_dim"] = model.hidden_size // model.num_attention_heads
    return config


def random_weights(model: ModelConfig, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """All tensors of the model, float32, by their Hugging Face names.

    Matrices are normal with mean 0 and standard deviation `model.initializer_range`, norm scales are 1, biases 0. Each tensor
    is drawn from a generator keyed by the seed and its name.
    """
    width = model.hidden_size
    size = width // model.num_attention_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, width)}
    for index in range(model.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes |= {
            **{f"{layer}{norm}.weight": (width,) for norm in FAMILIES[model.family].norms.values()},
            **{f"{layer}self_attn.{name}": shape for name, shape in _attention_shapes(model, size).items()},
            **{f"{layer}mlp.{name}": shape for name, shape in _mlp_shapes(model).items()},
        }
    shapes["model.norm.weight"] = (width,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab_size, width)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("bias"):
            return np.zeros(shape, np.float32)
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        drawn = generator(seed, "weights", name).standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(model.initializer_range)

    return {name: values(name, shape) for name, shape in shapes.items()}


def _attention_shapes(model: ModelConfig, size: int) -> dict[str, tuple[int, ...]]:
    width, q, kv = model.hidden_size, model.hidden_size, model.num_key_value_heads * size
    family = FAMILIES[model.family]
    if family.fused:
        return {"qkv_proj.weight": (q + 2 * kv, width), "o_proj.weight": (width, q)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in {"q": q, "k": kv, "v": kv}.items():
        shapes[f"{name}_proj.weight"] = (rows, width)
        if family.qkv_bias is True:  # config.json says attention_bias = false
            shapes[f"{name}_proj.bias"] = (rows,)
        if family.qk_norm != "none" and name != "v":
            shapes[f"{name}_norm.weight"] = (size if family.qk_norm == "head" else rows,)
    return shapes | {"o_proj.weight": (width, q)}


def _mlp_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    width, ffn = model.hidden_size, model.intermediate_size
    if FAMILIES[model.family].fused:
        return {"gate_up_proj.weight": (2 * ffn, width), "down_proj.weight": (width, ffn)}
    return {"gate_proj.weight": (ffn, width), "up_proj.weight": (ffn, width), "down_proj.weight": (width, ffn)}
