"""The decoder's shape, read from a Hugging Face `config.json`. All families use one decoder; they differ in its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from creason_jax.model.rope import Rope
from shared.errors import InputError
from shared.policy.families import COMMON, FAMILIES, MODEL_CONFIG
from shared.storage import files

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)
NULL_MEANS = ("num_key_value_heads", "sliding_window")  # for these, null in config.json differs from a missing field
ATTENTION = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A dense decoder. Sizes have the names of Hugging Face's `config.json`, options those of `shared/policy/families.py`."""

    model_type: str = "phi3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0  # N, width of one attention head; 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-5
    rope: Rope = Rope()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "whole"] = (
        "none"  # norm of q and k before rotation: over each head alone, or over the whole of all heads
    )
    norms_after: bool = False  # norms come after attention and MLP instead of before them
    late_rounding: bool = (
        False  # norms and rotation compute in float32 and round to the compute dtype only at their end
    )
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    max_position_embeddings: int = 4_096
    longest_sequence: int = 0  # tokens of the longest sequence that the run may compute; 0: max_position_embeddings

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if not self.longest_sequence:
            object.__setattr__(self, "longest_sequence", self.max_position_embeddings)

    @property
    def rotary_dim(self) -> int:
        """How many leading dimensions of each head are rotated."""
        return self.rope.rotary_dim(self.head_dim)

    @property
    def num_params(self) -> int:
        """The number of trainable parameters."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        model, ffn = self.hidden_size, self.intermediate_size
        layer = 2 * (q + kv) * model + 3 * model * ffn + 2 * model
        layer += self.qkv_bias * (q + 2 * kv) + self.o_bias * model + self.mlp_bias * (2 * ffn + model)
        layer += {"none": 0, "head": 2 * self.head_dim, "whole": q + kv}[self.qk_norm]
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * layer + tables * self.vocab_size * model + model

    @classmethod
    def from_hugging_face(
        cls, values: Mapping[str, Any], source: str = "config.json", *, longest: int | None = None
    ) -> DecoderConfig:
        """Read a parsed `config.json`; `source` names it in errors.

        `longest` is the number of tokens in the longest sequence that will be computed (`RunConfig.longest_sequence`;
        None: `max_position_embeddings`). It chooses between the two factor tables of longrope (see `rotary.py`). A sliding
        window at least as wide as `longest` has no effect and is accepted. Raises InputError for a family or an option that
        this backend does not compute.
        """
        kind = values.get("model_type")
        if kind not in FAMILIES:
            raise InputError(f"{source}: model_type is {kind!r}; this backend computes {', '.join(FAMILIES)}")
        family = FAMILIES[kind]
        assumed = {**COMMON, **family.defaults}
        fields = {name: value for name, value in assumed.items() if name not in NULL_MEANS or name not in values}
        fields |= {name: value for name, value in values.items() if value is not None}
        fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
        for name in SIZES:
            if not isinstance(fields.get(name), int) or fields[name] < 1:
                raise InputError(f"{source}: {name} is {fields.get(name)!r}; a whole number above 0 is needed")
        heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
        if heads % kv_heads:
            raise InputError(f"{source}: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
        if fields["hidden_act"] != "silu":
            raise InputError(f"{source}: hidden_act is {fields['hidden_act']!r}; only 'silu' is computed")
        if "quantization_config" in fields:
            raise InputError(f"{source}: quantized weights are not supported; give the model before its quantization")
        positions, head_dim = (
            fields["max_position_embeddings"],
            fields.get("head_dim") or fields["hidden_size"] // heads,
        )
        longest = longest or positions
        window = _window(fields, source)
        if window is not None and window < longest:
            raise InputError(
                f"{source}: sliding_window {window} is shorter than the longest sequence ({longest} tokens): it is not "
                "computed; set it to null, or lower rollout.max_prompt_tokens or rollout.max_new_tokens"
            )

        def has(bias: bool | str) -> bool:
            return bool(fields.get(bias)) if isinstance(bias, str) else bias

        return cls(
            **{name: fields[name] for name in (*SIZES, "initializer_range")},
            model_type=kind,
            head_dim=head_dim,
            rms_norm_eps=fields["rms_norm_eps"],
            rope=Rope.from_hugging_face(fields, source, head_dim=head_dim, positions=positions),
            qkv_bias=has(family.qkv_bias),
            o_bias=has(family.o_bias),
            mlp_bias=has(family.mlp_bias),
            qk_norm=family.qk_norm,
            norms_after=family.norms_after,
            late_rounding=family.late_rounding,
            tie_word_embeddings=fields["tie_word_embeddings"],
            max_position_embeddings=positions,
            longest_sequence=longest,
        )

    @classmethod
    def read(cls, folder: Path, *, longest: int | None = None) -> DecoderConfig:
        """Read `folder/config.json`; see `from_hugging_face`."""
        path = folder / MODEL_CONFIG
        return cls.from_hugging_face(files.read_json_object(path), str(path), longest=longest)


def _window(fields: Mapping[str, Any], source: str) -> int | None:
    """Width of the sliding window, in tokens, if any layer has one."""
    rule = FAMILIES[fields["model_type"]].window
    if rule == "none":
        return None
    if rule == "all":
        return fields.get("sliding_window")
    kinds = fields.get("layer_types")
    if kinds is None:
        kinds = [ATTENTION[fields["max_window_layers"] < fields["num_hidden_layers"]]]
    unknown = sorted(set(kinds) - set(ATTENTION))
    if unknown:
        raise InputError(f"{source}: layer_types has {unknown[0]!r}; only {' and '.join(ATTENTION)} are known")
    slides = fields.get("use_sliding_window", False) and ATTENTION[1] in kinds
    return fields.get("sliding_window") if slides else None
