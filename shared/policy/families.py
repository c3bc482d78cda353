"""The families of dense decoders that both backends compute, one row each: what differs from the plain decoder.

The plain decoder has a norm before attention and one before the MLP, no biases, no norm of q and k, a matrix on disk for each
projection, and no sliding window. Keys are Hugging Face's `model_type`. Plain data: nothing here imports anything of ours.
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
    """A row. A bias is there (True), is not (False), or is named: the field of `config.json` that says whether it is."""

    architecture: str  # Hugging Face's class
    defaults: Mapping[str, Any]  # what Hugging Face assumes where config.json is silent, beside COMMON
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    fused: bool = False  # on disk q, k and v are one matrix, gate and up another
    qk_norm: Literal["none", "head", "whole"] = (
        "none"  # norms of q and k before rotation: over each head, over all of them
    )
    norms: Mapping[str, str] = dataclasses.field(default_factory=lambda: NORMS_BEFORE)
    # Norms and rotation are rounded to the compute dtype at their end only, not before the scale and the tables are applied.
    late_rounding: bool = False
    # Layers with a sliding window: none; all (`sliding_window`); those that `layer_types` or `max_window_layers` say, where
    # `use_sliding_window` is true.
    window: Literal["none", "all", "some"] = "none"
    ropes: tuple[str, ...] = EVERY_ROPE  # kinds of rotary position embedding
    rope_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # older names of kinds
    partial_rotary: bool = False  # whether `partial_rotary_factor` may leave a part of each head unrotated
    original_positions: int | None = None  # original_max_position_embeddings by default; None: max_position_embeddings
    # Further fields that the config.json of a model made here needs; a number of positions is given as POSITIONS.
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def norms_after(self) -> bool:
        """Whether norms follow attention and MLP instead of preceding them."""
        return "input_norm" not in self.norms


COMMON: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False, "initializer_range": 0.02}
POSITIONS = "positions"
# Without a default for num_key_value_heads a silent config.json means num_attention_heads.
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
        made={
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
    ),
}
