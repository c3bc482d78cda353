"""The rotary position embedding (RoPE) fields of a Hugging Face `config.json`, in their old and new names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from shared.errors import InputError
from shared.policy.families import FAMILIES

# Type of RoPE -> the fields that `rope_parameters` must have for it.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
NUMBERS = (
    *("rope_theta", "partial_rotary_factor", "factor", "attention_factor", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)
TABLES = ("short_factor", "long_factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions rotate heads. Names are those of `rope_parameters` in Hugging Face's `config.json`."""

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0  # fraction of each head that is rotated
    original_max_position_embeddings: int = (
        0  # llama3, yarn, longrope: longest sequence before the context was extended
    )
    factor: float = 1.0
    attention_factor: float | None = None  # yarn, longrope: multiplies cosine and sine; None: computed from `factor`
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any], source: str, *, head_dim: int, positions: int) -> Rope:
        """Read the RoPE fields of a parsed `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` in older files.

        `positions` is `max_position_embeddings`; `source` names the file in errors. Raises InputError for a type that this
        backend does not compute, and for one whose fields are missing or wrong.
        """
        family = FAMILIES[values["model_type"]]
        rope_fields = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
        kind: Any = rope_fields.get("rope_type", rope_fields.get("type", "default"))
        kind = family.rope_aliases.get(kind, kind)
        for name in ("rope_theta", "partial_rotary_factor"):
            if rope_fields.get(name) is None and values.get(name) is not None:
                rope_fields[name] = values[name]
        if kind not in family.ropes:
            raise InputError(
                f"{source}: rope type {kind!r} is not computed; this backend computes {', '.join(family.ropes)}"
            )
        for name in KINDS[kind]:
            if rope_fields.get(name) is None:
                raise InputError(f"{source}: rope type {kind!r} needs {name}")
        original = values.get("original_max_position_embeddings", rope_fields.get("original_max_position_embeddings"))
        original = original or family.original_positions or positions
        if kind in ("yarn", "longrope") and rope_fields.get("factor") is None:
            rope_fields["factor"] = positions / original
        fields: dict[str, Any] = {"rope_type": kind, "original_max_position_embeddings": int(original)}
        fields |= {
            name: _number(rope_fields[name], name, source) for name in NUMBERS if rope_fields.get(name) is not None
        }
        if kind == "longrope":
            fields |= {name: tuple(_number(factor, name, source) for factor in rope_fields[name]) for name in TABLES}
        rope = cls(**fields, truncate=bool(rope_fields.get("truncate", True)))
        size = rope.rotary_dim(head_dim)
        if rope.partial_rotary_factor != 1 and not family.partial_rotary:
            partial = ", ".join(name for name, family in FAMILIES.items() if family.partial_rotary)
            raise InputError(
                f"{source}: partial_rotary_factor {rope.partial_rotary_factor} is computed for {partial} only"
            )
        if size % 2 or not 0 < size <= head_dim:
            raise InputError(
                f"{source}: {size} of a head's {head_dim} dimensions would be rotated; it must be an even part"
            )
        for name in TABLES if kind == "longrope" else ():
            if len(getattr(rope, name)) != size // 2:
                raise InputError(f"{source}: {name} has {len(getattr(rope, name))} numbers; it needs {size // 2}")
        return rope

    def rotary_dim(self, head_dim: int) -> int:
        """How many leading dimensions of a head of size `head_dim` are rotated."""
        return int(head_dim * self.partial_rotary_factor)

    @property
    def attention_scaling(self) -> float:
        """The number that multiplies cosine and sine."""
        if self.attention_factor is not None and self.rope_type in ("yarn", "longrope"):
            return self.attention_factor
        if self.rope_type == "yarn":
            if self.mscale and self.mscale_all_dim:
                return _yarn_scale(self.factor, self.mscale) / _yarn_scale(self.factor, self.mscale_all_dim)
            return _yarn_scale(self.factor)
        if self.rope_type == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_position_embeddings))
        return 1.0


def _yarn_scale(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _number(value: Any, name: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{source}: {name} holds {value!r} where a number is needed")
    return float(value)
