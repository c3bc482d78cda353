"""The families of dense decoders that both backends support. Each says how it differs from the plain decoder.

The plain decoder has one norm before attention and one before the MLP, no biases, no norms of q and k, one matrix on disk for
each projection, and no sliding window. The keys of the table are Hugging Face's `model_type`. This file holds only data, and
imports nothing of this project.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

MODEL_CONFIG = "config.json"  # the file in a model's folder that names its family and its sizes
# Our name of a layer's norm -> Hugging Face's.
NORMS_BEFORE = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
NORMS_AFTER = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
EVERY_ROPE = ("default", "linear", "llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family. A bias is True (always there), False (never), or the name of the field in `config.json` that decides it."""

    architecture: str  # the name of Hugging Face's class
    defaults: Mapping[str, Any]  # Hugging Face's defaults for fields that config.json lacks, in addition to COMMON
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    fused: bool = False  # on disk, q, k and v are one matrix, and gate and up are another
    # Norms of q and k before the rotary embedding: none, over each head, or over all heads together.
    qk_norm: Literal["none", "head", "whole"] = "none"
    norms: Mapping[str, str] = dataclasses.field(default_factory=lambda: NORMS_BEFORE)
    # Norms and rotary embedding are rounded to the compute dtype only once, after the scale or the rotation is applied.
    late_rounding: bool = False
    # Layers with a sliding window: none; all of them, if `sliding_window` is set; or, if `use_sliding_window` is true, those that
    # `layer_types` or `max_window_layers` name.
    window: Literal["none", "all", "some"] = "none"
    ropes: tuple[str, ...] = EVERY_ROPE  # the kinds of rotary position embedding that the family has
    rope_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # older names of these kinds -> the kind
    partial_rotary: bool = False  # whether `partial_rotary_factor` may leave a part of each head without rotation
    original_positions: int | None = None  # default of original_max_position_embeddings; None: max_position_embeddings
    # Whether vLLM has code of its own for it. If not, it runs Transformers' class, and changes that class for the whole process.
    vllm_has_own_code: bool = True
    # More fields for the config.json of a model that is created here; POSITIONS stands for the number of positions.
    new_model_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def norms_after(self) -> bool:
        """Whether the norms come after attention and MLP, and not before."""
        return "input_norm" not in self.norms


COMMON: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False, "initializer_range": 0.02}
POSITIONS = "positions"
# If a family has no default for num_key_value_heads, and config.json lacks it, num_attention_heads is used.
QWEN: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "sliding_window": 4_096,
    "max_window_layers": 28,
}

FAMILIES: dict[str, Family] = {
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4_096},
        fused=True,
        window="all",
        ropes=("default", "longrope"),
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        partial_rotary=True,
        original_positions=4_096,
        new_model_fields={
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": POSITIONS,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2_048},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    "qwen2": Family(architecture="Qwen2ForCausalLM", defaults=QWEN, qkv_bias=True, window="some"),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults=QWEN | {"head_dim": 128},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm="head",
        window="some",
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "sliding_window": 4_096,
        },
        window="all",
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2_048},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm="whole",
        norms=NORMS_AFTER,
        late_rounding=True,
        vllm_has_own_code=False,
    ),
}
