"""The decoder's shape, read from a Hugging Face `config.json`: one decoder, families differ by its options."""

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
NULL_MEANS = ("num_key_value_heads", "sliding_window")  # null in config.json is not the default of a silent one
ATTENTION = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A dense decoder. Names are those of Hugging Face's `config.json`, of options those of `shared/policy/families.py`."""

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
        "none"  # norms of q and k before rotation: over each head, over all of them
    )
    norms_after: bool = False  # norms follow attention and MLP instead of preceding them
    late_rounding: bool = False  # norms and rotation are rounded to the compute dtype at their end only
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    max_position_embeddings: int = 4_096
    longest_sequence: int = 0  # tokens that a run may put into one sequence; 0: max_position_embeddings

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if not self.longest_sequence:
            object.__setattr__(self, "longest_sequence", self.max_position_embeddings)

    @property
    def rotary_dim(self) -> int:
        """Leading part of each head that is rotated."""
        return self.rope.rotary_dim(self.head_dim)

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
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
        """Read a parsed `config.json`.

        `longest` is the number of tokens in the longest sequence that will be computed (`RunConfig.longest_sequence`;
        without it `max_position_embeddings`): it chooses among longrope's factors, see `rotary.py`, and a sliding window
        that it does not exceed has no effect. Raises InputError for a family or an option that is not computed.
        """
        kind = values.get("model_type")
        if kind not in FAMILIES:
            raise InputError(f"{source}: model_type is {kind!r}; this backend computes {', '.join(FAMILIES)}")
        family = FAMILIES[kind]
        assumed = {**COMMON, **family.defaults}
        given = {name: value for name, value in assumed.items() if name not in NULL_MEANS or name not in values}
        given |= {name: value for name, value in values.items() if value is not None}
        given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
        for name in SIZES:
            if not isinstance(given.get(name), int) or given[name] < 1:
                raise InputError(f"{source}: {name} is {given.get(name)!r}; a whole number above 0 is needed")
        heads, kv_heads = given["num_attention_heads"], given["num_key_value_heads"]
        if heads % kv_heads:
            raise InputError(f"{source}: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
        if given["hidden_act"] != "silu":
            raise InputError(f"{source}: hidden_act is {given['hidden_act']!r}; only 'silu' is computed")
        if "quantization_config" in given:
            raise InputError(f"{source}: quantized weights are not computed; give the model that it was made from")
        positions, head_dim = given["max_position_embeddings"], given.get("head_dim") or given["hidden_size"] // heads
        longest = longest or positions
        window = _window(given, source)
        if window is not None and window < longest:
            raise InputError(
                f"{source}: sliding_window {window} is shorter than the longest sequence ({longest} tokens): it is not "
                "computed; set it to null, or lower rollout.max_prompt_tokens or rollout.max_new_tokens"
            )

        def has(bias: bool | str) -> bool:
            return bool(given.get(bias)) if isinstance(bias, str) else bias

        return cls(
            **{name: given[name] for name in (*SIZES, "initializer_range")},
            model_type=kind,
            head_dim=head_dim,
            rms_norm_eps=given["rms_norm_eps"],
            rope=Rope.from_hugging_face(given, source, head_dim=head_dim, positions=positions),
            qkv_bias=has(family.qkv_bias),
            o_bias=has(family.o_bias),
            mlp_bias=has(family.mlp_bias),
            qk_norm=family.qk_norm,
            norms_after=family.norms_after,
            late_rounding=family.late_rounding,
            tie_word_embeddings=given["tie_word_embeddings"],
            max_position_embeddings=positions,
            longest_sequence=longest,
        )

    @classmethod
    def read(cls, folder: Path, *, longest: int | None = None) -> DecoderConfig:
        """Read `folder/config.json`; see `from_hugging_face`."""
        path = folder / MODEL_CONFIG
        return cls.from_hugging_face(files.read_json_object(path), str(path), longest=longest)


def _window(given: Mapping[str, Any], source: str) -> int | None:
    """Width of the sliding window of whichever layers have one."""
    rule = FAMILIES[given["model_type"]].window
    if rule == "none":
        return None
    if rule == "all":
        return given.get("sliding_window")
    kinds = given.get("layer_types")
    if kinds is None:
        kinds = [ATTENTION[given["max_window_layers"] < given["num_hidden_layers"]]]
    other = sorted(set(kinds) - set(ATTENTION))
    if other:
        raise InputError(f"{source}: layer_types has {other[0]!r}; only {' and '.join(ATTENTION)} are known")
    slides = given.get("use_sliding_window", False) and ATTENTION[1] in kinds
    return given.get("sliding_window") if slides else None
