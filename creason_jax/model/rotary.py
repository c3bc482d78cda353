"""Rotary position embeddings (RoPE): the inverse frequencies of every type, and the rotation itself.

**Which factors a longrope model uses.** Such a model (Phi-3 128k, Phi-4-mini) has two tables of factors: short ones for
sequences of up to `original_max_position_embeddings` tokens, and long ones for longer sequences. Hugging Face chooses again at
each call, by the largest position in that call. Then a row would depend on the other rows of its micro-batch, and training could
score a token with another table than the rollout used. Here a run uses one table: the long one if the longest sequence that the
run may make (`rollout.max_prompt_tokens` plus the largest `max_new_tokens`) exceeds `original_max_position_embeddings`, else the
short one. vLLM has the same rule (its `max_model_len` is the same number), and so has the PyTorch backend. Hugging Face agrees
with a run on the short table, and on the long table for sequences longer than `original_max_position_embeddings`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from creason_jax.model.config import DecoderConfig
from creason_jax.model.rope import Rope


def inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians by which each pair of dimensions turns from one position to the next, `[rotary_dim / 2]` float32.

    NumPy computes the powers, because it rounds as Hugging Face does. A power compiled by XLA differs by several units in the
    last place: up to 3e-4 radians at position 16,000.
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
    """Cosine and sine `[..., 1, rotary_dim]` for `positions` `[...]`, computed in float32.

    They are cast to `dtype`, but stay float32 for a model with `late_rounding`.
    """
    dtype = jnp.dtype(jnp.float32) if config.late_rounding else dtype
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    angles = jnp.concatenate([angles, angles], axis=-1)[..., None, :]
    scaling = config.rope.attention_scaling
    return (jnp.cos(angles) * scaling).astype(dtype), (jnp.sin(angles) * scaling).astype(dtype)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the first `rotary_dim` dimensions of each head `[..., H, N]`; dimension i is paired with i + rotary_dim / 2."""
    cos, sin = rotation
    size = cos.shape[-1]
    rotated, rest = x[..., :size], x[..., size:]
    first, second = jnp.split(rotated, 2, axis=-1)
    rotated = (rotated * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


def _llama3(frequencies: np.ndarray, rope: Rope) -> np.ndarray:
    """Llama 3.1: low frequencies are divided by `factor`, high ones are unchanged, with a smooth transition between them."""
    original, low, high = rope.original_max_position_embeddings, rope.low_freq_factor, rope.high_freq_factor
    waves = np.float32(2 * math.pi) / frequencies
    slowed = frequencies / np.float32(rope.factor)
    smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * frequencies / np.float32(rope.factor) + smooth * frequencies
    return np.where(waves > original / low, slowed, np.where(waves < original / high, frequencies, between))


def _yarn(powers: np.ndarray, rope: Rope, size: int) -> np.ndarray:
    """YaRN (arXiv 2309.00071): high frequencies are unchanged, low ones are divided by `factor`, with a ramp between them."""

    def dimension(turns: float) -> float:
        positions = rope.original_max_position_embeddings
        return size * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    unscaled = 1 - np.clip((np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    return 1 / (np.float32(rope.factor) * powers) * (1 - unscaled) + 1 / powers * unscaled
