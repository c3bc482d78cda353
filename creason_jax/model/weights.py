"""Hugging Face safetensors <-> parameters, slice by slice: no host ever holds more than its own shards.

Each of our kernels is a slice of rows of one Hugging Face matrix, transposed and reshaped: `qkv_proj` holds the rows of q,
then k, then v; `gate_up_proj` those of gate, then up.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creason_jax import distributed
from creason_jax.model.config import DecoderConfig
from creason_jax.model.decoder import Params, abstract_params
from shared import files
from shared.errors import InputError
from shared.kernels import Source, sources, to_rows

SHARD_BYTES = 5 * 2**30  # Hugging Face's own limit for one file


def sources_of(config: DecoderConfig) -> dict[str, Source]:
    """Path of a parameter -> where it is in a Hugging Face model of this shape."""
    return sources(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
    )


def load_params(folder: Path, config: DecoderConfig, shardings: Any) -> Params:
    """Read the parameters as float32 arrays with the given shardings (a tree like the parameters).

    Raises InputError for a missing, truncated or wrongly shaped tensor.
    """
    reader = _Reader(folder)
    table = sources_of(config)

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        keys = ".".join(str(part.key) for part in path)
        source = table[keys]

        def read(index: tuple[slice, ...]) -> np.ndarray:
            if not keys.startswith("layers."):
                return reader.slice(source, leaf.shape, index)
            layers = range(*index[0].indices(leaf.shape[0]))
            named = [dataclasses.replace(source, name=source.name.format(layer)) for layer in layers]
            return np.stack([reader.slice(each, leaf.shape[1:], index[1:]) for each in named])

        return jax.make_array_from_callback(leaf.shape, sharding, read)  # type: ignore[arg-type]

    return jax.tree_util.tree_map_with_path(one, abstract_params(config), shardings)


def save_params(folder: Path, params: Params, config: DecoderConfig) -> None:
    """Write safetensors (several files and an index beyond 5 GiB) that Transformers loads."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in _hugging_face_tensors(params, config):
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    files.write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def gather_params(params: Params, config: DecoderConfig) -> None:
    """What the other processes do while one writes with `save_params`: every tensor is put together from all of them."""
    for _ in _hugging_face_tensors(params, config):
        pass


def _hugging_face_tensors(params: Params, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Each Hugging Face tensor whole, fused where Hugging Face fuses."""
    table = sources_of(config)
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = ".".join(str(part.key) for part in path)
        stacked = keys.startswith("layers.")
        values = np.asarray(distributed.fetch(leaf))
        for layer, value in enumerate(values if stacked else [values]):
            source = table[keys]
            parts.setdefault(source.name.format(layer), []).append((source.row, to_rows(value, source.inputs)))
    for name, found in parts.items():
        rows = [value for _, value in sorted(found, key=lambda part: part[0])]
        yield name, np.ascontiguousarray(np.concatenate(rows) if len(rows) > 1 else rows[0])


class _Reader:
    """Opens the files of a model lazily and reads slices of its tensors."""

    def __init__(self, folder: Path):
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        if index.is_file():
            self.files = {name: folder / file for name, file in files.read_json(index)["weight_map"].items()}
        elif single.is_file():
            with _opened(single) as handle:
                self.files = dict.fromkeys(handle.keys(), single)
        else:
            raise InputError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
        self.folder = folder
        self.handles: dict[Path, Any] = {}

    def slice(self, source: Source, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a kernel of the given shape, float32."""
        if source.name not in self.files:
            raise InputError(f"{self.folder}: tensor {source.name} is missing")
        file = self.files[source.name]
        if file not in self.handles:
            self.handles[file] = _opened(file).__enter__()
        try:
            tensor = self.handles[file].get_slice(source.name)
        except SafetensorError:
            raise InputError(f"{file}: tensor {source.name} is missing, though the index names it") from None
        bounds = [range(*part.indices(size)) for part, size in zip(index, shape)]
        found = tuple(tensor.get_shape())
        if not source.inputs:
            self._check(source.name, found == shape, found, shape)
            return np.asarray(tensor[tuple(slice(b.start, b.stop) for b in bounds)], np.float32)
        columns = _flat(bounds[: source.inputs], shape[: source.inputs])
        rows = _flat(bounds[source.inputs :], shape[source.inputs :])
        needed = (source.rows or math.prod(shape[source.inputs :]), math.prod(shape[: source.inputs]))
        self._check(source.name, found == needed, found, needed)
        matrix = tensor[source.row + rows.start : source.row + rows.stop, columns.start : columns.stop]
        return np.asarray(matrix, np.float32).T.reshape([len(b) for b in bounds])

    def _check(self, name: str, condition: bool, found: tuple[int, ...], needed: tuple[int, ...]) -> None:
        if not condition:
            raise InputError(f"{self.folder}: tensor {name} has shape {found}, config.json asks for {needed}")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, though the index names it") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: truncated or not safetensors ({error})") from None


def _flat(bounds: list[range], shape: tuple[int, ...]) -> range:
    """The range that a block covers in the flattened dimensions: only the first of them may be split."""
    if any(len(bound) != size for bound, size in zip(bounds[1:], shape[1:])):
        raise ValueError("only the leading dimension of a flattened pair can be split")
    step = math.prod(shape[1:])
    return range(bounds[0].start * step, bounds[0].stop * step)
