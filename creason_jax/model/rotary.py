"""Rotary position embeddings: the inverse frequencies of every kind that is computed, and the rotation itself.

**Which factors a longrope model uses.** Such a model (Phi-3 128k, Phi-4-mini) has two tables of factors: short ones for
sequences of up to `original_max_position_embeddings` tokens, long ones beyond. Hugging Face decides anew at each call, by the
largest position in it: a row would depend on its neighbours in a micro-batch, and a token scored in training on another table
than the one it was drawn with. Here one table serves a whole run: the long one where the longest sequence that the run may make
(`rollout.max_prompt_tokens` and the largest `max_new_tokens`) is above `original_max_position_embeddings`, else the short one.
That is vLLM's rule too, whose `max_model_len` is the same number; the PyTorch backend follows it.
Hugging Face agrees wherever the run uses short factors, and for sequences above the switch wherever it uses long ones.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from creason_jax.model.config import DecoderConfig
from creason_jax.model.rope import Rope


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
    """Cosine and sine `[..., 1, rotary_dim]` of rotary position embeddings, computed in float32.

    Rounded to `dtype`, unless the model rounds late.
    """
    dtype = jnp.dtype(jnp.float32) if config.late_rounding else dtype
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
    rotated = (rotated * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)
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
