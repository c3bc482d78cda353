"""Where each kernel of the Flax decoder is in a Hugging Face model: what lets one backend read the other's checkpoints."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a kernel is in a Hugging Face model: a tensor, the first of its rows, and how many dimensions are inputs.

    `inputs` leading dimensions of our kernel are the columns of the matrix, the others its rows; 0 means that the tensor
    has our own orientation (tables and norms). `rows` counts those of a fused matrix; 0: the matrix is not fused.
    """

    name: str
    row: int = 0
    inputs: int = 0
    rows: int = 0


def sources(*, heads: int, kv_heads: int, head_dim: int, intermediate_size: int) -> dict[str, Source]:
    """Path of a parameter -> its source; `{}` in the name stands for the layer."""
    q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
    qkv_rows, ffn = q_rows + 2 * kv_rows, intermediate_size
    layer = "model.layers.{}."
    return {
        "embed.kernel": Source("model.embed_tokens.weight"),
        "layers.input_norm.scale": Source(layer + "input_layernorm.weight"),
        "layers.q.kernel": Source(layer + "self_attn.qkv_proj.weight", 0, 1, qkv_rows),
        "layers.k.kernel": Source(layer + "self_attn.qkv_proj.weight", q_rows, 1, qkv_rows),
        "layers.v.kernel": Source(layer + "self_attn.qkv_proj.weight", q_rows + kv_rows, 1, qkv_rows),
        "layers.o.kernel": Source(layer + "self_attn.o_proj.weight", 0, 2),
        "layers.post_norm.scale": Source(layer + "post_attention_layernorm.weight"),
        "layers.gate.kernel": Source(layer + "mlp.gate_up_proj.weight", 0, 1, 2 * ffn),
        "layers.up.kernel": Source(layer + "mlp.gate_up_proj.weight", ffn, 1, 2 * ffn),
        "layers.down.kernel": Source(layer + "mlp.down_proj.weight", 0, 1),
        "norm.scale": Source("model.norm.weight"),
        "head.kernel": Source("lm_head.weight", 0, 1),
    }


def to_rows(value: np.ndarray, inputs: int) -> np.ndarray:
    """A kernel with `inputs` leading input dimensions as the rows of a Hugging Face matrix."""
    if not inputs:
        return value
    return value.reshape(math.prod(value.shape[:inputs]), -1).T
