"""Rotary position embeddings: the inverse frequencies of every kind that is computed, and the rotation itself.

**Which factors a longrope model uses.** Such a model (Phi-3 128k, Phi-4-mini) has two tables of factors: short ones for
sequences of up to `original_max_position_embeddings` tokens, long ones beyond. Hugging Face decides anew at each call, by the
largest position in it: a row would depend on its neighbours in a micro-batch, and a token scored in training on another table
than the one it was drawn with. Here one table serves a whole run: the long one where the longest sequence that the run may make
(`rollout.max_prompt_tokens` and the largest `max_new_tokens`) is above `original_max_position_embeddings`, else the short one.
That is vLLM's rule too, whose `max_model_len` is the same number; the PyTorch backend follows it (`creason_torch.model`).
Hugging Face agrees wherever the run uses short factors, and for sequences above the switch wherever it uses long ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from shared.errors import InputError

if TYPE_CHECKING:
    from creason_jax.model.config import DecoderConfig

# Kind -> what `rope_parameters` must give for it.
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
    """How positions turn heads. Names are those of `rope_parameters` in Hugging Face's `config.json`."""

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0  # part of each head that is rotated
    original_max_position_embeddings: int = 0  # llama3, yarn, longrope: positions of the first training
    factor: float = 1.0
    attention_factor: float | None = None  # yarn, longrope: cosine and sine are multiplied by it; None: from `factor`
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
        """Read the rope fields of a parsed `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` as older files
        have them.

        `positions` is `max_position_embeddings`. Raises InputError for a kind that is not computed, or an incomplete one.
        """
        phi3 = values["model_type"] == "phi3"
        given = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
        kind = given.get("rope_type", given.get("type", "default"))
        if phi3 and kind in ("su", "yarn"):  # the first names of longrope
            kind = "longrope"
        for name in ("rope_theta", "partial_rotary_factor"):
            if given.get(name) is None and values.get(name) is not None:
                given[name] = values[name]
        known = tuple(each for each in KINDS if each in ("default", "longrope") or not phi3)
        if kind not in known:
            raise InputError(f"{source}: rope type {kind!r} is not computed; this backend computes {', '.join(known)}")
        for name in KINDS[kind]:
            if given.get(name) is None:
                raise InputError(f"{source}: rope type {kind!r} needs {name}")
        original = values.get("original_max_position_embeddings", given.get("original_max_position_embeddings"))
        original = original or (4_096 if phi3 else positions)
        if kind in ("yarn", "longrope") and given.get("factor") is None:
            given["factor"] = positions / original
        fields: dict[str, Any] = {"rope_type": kind, "original_max_position_embeddings": int(original)}
        fields |= {name: _number(given[name], name, source) for name in NUMBERS if given.get(name) is not None}
        if kind == "longrope":
            fields |= {name: tuple(_number(each, name, source) for each in given[name]) for name in TABLES}
        rope = cls(**fields, truncate=bool(given.get("truncate", True)))
        size = rope.rotary_dim(head_dim)
        if rope.partial_rotary_factor != 1 and not phi3:
            raise InputError(f"{source}: partial_rotary_factor {rope.partial_rotary_factor} is computed for phi3 only")
        if size % 2 or not 0 < size <= head_dim:
            raise InputError(
                f"{source}: {size} of a head's {head_dim} dimensions would be rotated; it must be an even part"
            )
        for name in TABLES if kind == "longrope" else ():
            if len(getattr(rope, name)) != size // 2:
                raise InputError(f"{source}: {name} has {len(getattr(rope, name))} numbers; it needs {size // 2}")
        return rope

    def rotary_dim(self, head_dim: int) -> int:
        """Leading part of each head that is rotated."""
        return int(head_dim * self.partial_rotary_factor)

    @property
    def attention_scaling(self) -> float:
        """What cosine and sine are multiplied by."""
        if self.attention_factor is not None and self.rope_type in ("yarn", "longrope"):
            return self.attention_factor
        if self.rope_type == "yarn":
            if self.mscale and self.mscale_all_dim:
                return _yarn_scale(self.factor, self.mscale) / _yarn_scale(self.factor, self.mscale_all_dim)
            return _yarn_scale(self.factor)
        if self.rope_type == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_position_embeddings))
        return 1.0


def inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians that each pair of a head's rotated part turns for each position, `[rotary_dim / 2]` float32.

    Rounded as Hugging Face rounds, by NumPy: a compiled power is off by several units in the last place, which is up to
    3e-4 radians at position 16,000.
    """
    rope, size = config.rope, config.rotary_dim
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    powers = np.power(rope.rope_theta, exponents, dtype=np.float64).astype(np.float32)
    if rope.rope_type == "linear":
        return 1 / powers / np.float32(rope.factor)
    if rope.rope_type == "llama3":
        return _llama3(1 / powers, rope)
    if rope.rope_type == "yarn":
        return _yarn(powers, rope, size)
    if rope.rope_type == "longrope":
        long = config.longest_sequence > rope.original_max_position_embeddings
        return 1 / (np.array(rope.long_factor if long else rope.short_factor, np.float32) * powers)
    return 1 / powers


def rotary(positions: jax.Array, config: DecoderConfig, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine `[..., 1, rotary_dim]` of rotary position embeddings, computed in float32."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    angles = jnp.concatenate([angles, angles], axis=-1)[..., None, :]
    scaling = config.rope.attention_scaling
    return (jnp.cos(angles) * scaling).astype(dtype), (jnp.sin(angles) * scaling).astype(dtype)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the leading part of each head `[..., H, N]`, halves paired as Hugging Face pairs them."""
    cos, sin = rotation
    size = cos.shape[-1]
    rotated, rest = x[..., :size], x[..., size:]
    first, second = jnp.split(rotated, 2, axis=-1)
    rotated = rotated * cos + jnp.concatenate([-second, first], axis=-1) * sin
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


def _llama3(frequencies: np.ndarray, rope: Rope) -> np.ndarray:
    """Long waves slowed by `factor`, short ones left alone, a smooth passage between (Llama 3.1)."""
    original, low, high = rope.original_max_position_embeddings, rope.low_freq_factor, rope.high_freq_factor
    waves = np.float32(2 * math.pi) / frequencies
    slowed = frequencies / np.float32(rope.factor)
    smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * frequencies / np.float32(rope.factor) + smooth * frequencies
    return np.where(waves > original / low, slowed, np.where(waves < original / high, frequencies, between))


def _yarn(powers: np.ndarray, rope: Rope, size: int) -> np.ndarray:
    """Dimensions that turn often are left alone, those that turn seldom are slowed by `factor` (arXiv 2309.00071)."""

    def dimension(turns: float) -> float:
        positions = rope.original_max_position_embeddings
        return size * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    kept = 1 - np.clip((np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    return 1 / (np.float32(rope.factor) * powers) * (1 - kept) + 1 / powers * kept


def _yarn_scale(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _number(value: Any, name: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{source}: {name} holds {value!r} where a number is needed")
    return float(value)
