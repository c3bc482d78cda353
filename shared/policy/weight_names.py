"""Where each parameter of the Flax decoder is stored in a Hugging Face model, so that each backend can read the other's files."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from shared.policy.families import FAMILIES


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter of the Flax decoder is stored in a Hugging Face model.

    `name` is the tensor, `row` the first of its rows that belongs to the parameter, and `rows` the number of all rows of a
    fused matrix (0: not fused). `inputs`: the first so many dimensions of our kernel are the columns of the Hugging Face matrix,
    and the others its rows; 0 for a vector (norms, biases); None for a table with the same orientation on both sides.
    """

    name: str
    row: int = 0
    inputs: int | None = 0
    rows: int = 0


def sources(family: str, *, heads: int, kv_heads: int, head_dim: int, intermediate_size: int) -> dict[str, Source]:
    """The source of each parameter, by its path in the Flax decoder; `{}` in a name stands for the number of the layer.

    `family` is a key of `FAMILIES`. Biases and the norms of q and k are listed even if the model does not have them.
    """
    q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
    qkv_rows, ffn = q_rows + 2 * kv_rows, intermediate_size
    layer, attention, mlp = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."
    table = {
        "embed.kernel": Source("model.embed_tokens.weight", inputs=None),
        "layers.o.kernel": Source(attention + "o_proj.weight", inputs=2),
        "layers.down.kernel": Source(mlp + "down_proj.weight", inputs=1),
        "norm.scale": Source("model.norm.weight"),
        "head.kernel": Source("lm_head.weight", inputs=1),
    } | {f"layers.{ours}.scale": Source(f"{layer}{theirs}.weight") for ours, theirs in FAMILIES[family].norms.items()}
    if FAMILIES[family].fused:
        qkv, gate_up = attention + "qkv_proj.weight", mlp + "gate_up_proj.weight"
        return table | {
            "layers.q.kernel": Source(qkv, 0, 1, qkv_rows),
            "layers.k.kernel": Source(qkv, q_rows, 1, qkv_rows),
            "layers.v.kernel": Source(qkv, q_rows + kv_rows, 1, qkv_rows),
            "layers.gate.kernel": Source(gate_up, 0, 1, 2 * ffn),
            "layers.up.kernel": Source(gate_up, ffn, 1, 2 * ffn),
        }
    names = {name: f"{attention}{name}_proj" for name in "qkvo"} | {
        name: f"{mlp}{name}_proj" for name in ("gate", "up", "down")
    }
    return (
        {f"layers.{name}.kernel": Source(f"{place}.weight", inputs=1) for name, place in names.items()}
        | {f"layers.{name}.bias": Source(f"{place}.bias") for name, place in names.items()}
        | {f"layers.{name}_norm.scale": Source(f"{attention}{name}_norm.weight") for name in "qk"}
        | table
    )


def to_rows(value: np.ndarray, inputs: int | None) -> np.ndarray:
    """A parameter of the Flax decoder in the shape of its Hugging Face tensor; `inputs` as in `Source`.

    With `inputs` of 1 or more, `[inputs..., outputs...]` becomes the matrix `[outputs, inputs]`; with 0 a vector; with None it
    is not changed.
    """
    if inputs is None:
        return value
    if inputs == 0:
        return value.reshape(-1)
    return value.reshape(math.prod(value.shape[:inputs]), -1).T
