"""The decoder's shape, read from and written to a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared import files
from shared.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A dense decoder of the Phi-3 family. Names are those of Hugging Face's `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    max_position_embeddings: int = 4_096

    @property
    def head_dim(self) -> int:
        """Width of one attention head (N)."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Leading part of each head that is rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
        attention = self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads) * self.hidden_size
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * layer + tables * self.vocab_size * self.hidden_size + self.hidden_size

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any], source: str = "config.json") -> DecoderConfig:
        """Read a parsed `config.json`. Raises InputError for a family or an option that this decoder does not compute."""
        kind = values.get("model_type")
        if kind != "phi3":
            raise InputError(f"{source}: model_type is {kind!r}; this backend computes 'phi3' (Phi-3, Phi-4)")
        if values.get("hidden_act", "silu") != "silu":
            raise InputError(f"{source}: hidden_act is {values['hidden_act']!r}; only 'silu' is computed")
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise InputError(f"{source}: rope type {rope.get('rope_type', rope.get('type'))!r} is not computed")
        window = values.get("sliding_window")
        if window is not None and window < values["max_position_embeddings"]:
            raise InputError(f"{source}: sliding_window {window} is shorter than the context; it is not computed")
        known = {field.name for field in dataclasses.fields(cls)}
        merged = {**values, **{name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}}
        try:
            config = cls(**{name: value for name, value in merged.items() if name in known})
        except TypeError as error:
            raise InputError(f"{source}: {error}") from None
        head_dim = values.get("head_dim") or config.head_dim
        if head_dim != config.head_dim:
            raise InputError(f"{source}: head_dim {head_dim} is not hidden_size / num_attention_heads")
        return config

    @classmethod
    def read(cls, folder: Path) -> DecoderConfig:
        """Read `folder/config.json`."""
        path = folder / "config.json"
        return cls.from_hugging_face(files.read_json(path), str(path))
