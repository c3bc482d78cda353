"""Hugging Face safetensors <-> parameters, slice by slice: no host holds more than its own shards.

Each kernel is a slice of rows of one Hugging Face matrix, transposed and reshaped; `shared/policy/weight_names.py` says which.
Host memory while loading: one device's shard of one parameter (all its layers, float32), a few earlier shards that JAX has not
freed yet, and CHUNK_BYTES of the file. Host memory while writing: two times one file (`weight_files.SHARD_BYTES`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import jax
import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from creason_jax import distributed
from creason_jax.model.config import DecoderConfig
from creason_jax.model.decoder import Params, abstract_params
from shared.errors import InputError
from shared.policy import weight_files
from shared.policy.weight_names import Source, sources, to_rows

CHUNK_BYTES = 2**26  # of a file, read at once
SHOWN_BYTES = 2**30  # models of at least this size in float32 load with a progress bar
Bounds = tuple[range, ...]  # a block of an array: a range of indices along each dimension


def sources_of(config: DecoderConfig) -> dict[str, Source]:
    """Path of each parameter -> the Hugging Face tensor, and its rows, that hold it."""
    return sources(
        config.model_type,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
    )


def load_params(folder: Path, config: DecoderConfig, shardings: Any, *, progress: bool | None = None) -> Params:
    """Read the parameters as float32 arrays with the given shardings (a tree like the parameters).

    `progress`: whether to show a progress bar; None: for large models, on a terminal. Raises InputError for a missing or
    truncated file, for a tensor that is missing or has another shape or dtype, and for one that the model does not have.
    """
    if progress is None and 4 * config.num_params < SHOWN_BYTES:
        progress = False
    hidden = None if progress is None else not progress  # None: tqdm looks for a terminal
    total = _bytes_to_read(config, shardings)
    with _Reader(folder) as reader, tqdm(desc="weights", total=total, unit="B", unit_scale=True, disable=hidden) as bar:
        reader.check(stored_shapes(config))
        return read_params(reader, config, shardings, bar.update)


class Reader(Protocol):
    """Reads parts of stored tensors."""

    def read(self, source: Source, name: str, shape: tuple[int, ...], bounds: Bounds, out: np.ndarray) -> None:
        """Write the block `bounds` of a kernel into `out`. The kernel has this `shape` and is stored in the tensor `name`."""
        ...


def read_params(
    reader: Reader, config: DecoderConfig, shardings: Any, count: Callable[[int], object] = lambda _: None
) -> Params:
    """Read the parameters with any `reader`; each process reads the shards of its own devices.

    `count` is called with the number of bytes after each read.
    """
    table = sources_of(config)

    def read_leaf(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        key = _key(path)
        source, stacked = table[key], key.startswith("layers.")

        def read(bounds: Bounds) -> np.ndarray:
            shard = np.empty([len(bound) for bound in bounds], np.float32)
            if stacked:
                for layer, out in zip(bounds[0], shard, strict=True):
                    reader.read(source, source.name.format(layer), leaf.shape[1:], bounds[1:], out)
                    count(out.nbytes)
            else:
                reader.read(source, source.name, leaf.shape, bounds, shard)
                count(shard.nbytes)
            return shard

        return _placed(leaf.shape, sharding, read)

    return jax.tree_util.tree_map_with_path(read_leaf, abstract_params(config), shardings)


class StoredParams:
    """A context manager that reads a model directory part by part, so that only one layer is in memory at a time.

    `shardings`: for parameters whose layers are a list. Raises InputError as `load_params` does, before anything is read.
    """

    def __init__(self, folder: Path, config: DecoderConfig, shardings: Any):
        self.config, self.shardings = config, shardings
        self._reader, self._table = _Reader(folder), sources_of(config)

    def __enter__(self) -> StoredParams:
        self._reader.__enter__()
        self._reader.check(stored_shapes(self.config))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._reader.__exit__(*raised)

    def part(self, name: str, layer: int | None = None) -> Params:
        """Float32 parameters of `embed`, `norm` or `head`; with `name="layers"`, those of the layer with index `layer`."""

        def read_leaf(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
            source = self._table[f"{name}.{_key(path)}"]
            stored, shape = source.name.format(layer), leaf.shape if layer is None else leaf.shape[1:]

            def read(bounds: Bounds) -> np.ndarray:
                shard = np.empty([len(bound) for bound in bounds], np.float32)
                self._reader.read(source, stored, shape, bounds, shard)
                return shard

            return _placed(shape, sharding, read)

        shardings = self.shardings[name] if layer is None else self.shardings[name][layer]
        return jax.tree_util.tree_map_with_path(read_leaf, abstract_params(self.config)[name], shardings)


def save_params(folder: Path, params: Params, config: DecoderConfig) -> None:
    """Write safetensors that Transformers loads: one file, or several and an index above 4 GiB."""
    weight_files.write(folder, _hugging_face_tensors(params, config), save_file)


def gather_params(params: Params, config: DecoderConfig) -> None:
    """Take part in the all-gathers of `save_params`; every process but the writing one must call it meanwhile."""
    for _ in _hugging_face_tensors(params, config):
        pass


def _hugging_face_tensors(params: Params, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of each whole Hugging Face tensor, one at a time, layer after layer; fused where Hugging Face fuses."""
    table = sources_of(config)
    leaves = {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    parts: dict[str, list[str]] = {}
    for key in sorted(leaves, key=lambda key: table[key].row):
        parts.setdefault(table[key].name, []).append(key)

    def tensor(keys: list[str], layer: int | None) -> np.ndarray:
        values = [leaves[key] if layer is None else _layer(leaves[key], layer) for key in keys]
        rows = [to_rows(np.asarray(distributed.fetch(value)), table[key].inputs) for key, value in zip(keys, values)]
        return np.ascontiguousarray(np.concatenate(rows) if len(rows) > 1 else rows[0])

    for name, keys in parts.items():
        if "{}" not in name:
            yield name, tensor(keys, None)
    for layer in range(config.num_hidden_layers):
        for name, keys in parts.items():
            if "{}" in name:
                yield name.format(layer), tensor(keys, layer)


@jax.jit
def _layer(leaf: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)


def stored_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a model directory of this configuration holds."""
    table = sources_of(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        key = _key(path)
        source, shape = table[key], leaf.shape
        layers = range(1)
        if key.startswith("layers."):
            layers, shape = range(shape[0]), shape[1:]
        if source.inputs is not None:
            columns = [math.prod(shape[: source.inputs])] if source.inputs else []
            shape = (source.rows or math.prod(shape[source.inputs :]), *columns)
        shapes |= {source.name.format(layer): shape for layer in layers}
    return shapes


def _key(path: tuple[Any, ...]) -> str:
    return ".".join(str(part.key) for part in path)


def _by_part(shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> dict[Bounds, list[jax.Device]]:
    """The blocks of an array that this process's devices hold -> the devices that hold each block."""
    devices_of_part: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = tuple(range(*part.indices(size)) for part, size in zip(index, shape, strict=True))
        devices_of_part.setdefault(bounds, []).append(device)
    return devices_of_part


def _bytes_to_read(config: DecoderConfig, shardings: Any) -> int:
    def bytes_of_leaf(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> int:
        return 4 * len(_by_part(leaf.shape, sharding)) * math.prod(sharding.shard_shape(leaf.shape))

    return sum(jax.tree.leaves(jax.tree.map(bytes_of_leaf, abstract_params(config), shardings)))


def _placed(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[Bounds], np.ndarray]) -> jax.Array:
    """An array whose blocks come from `read`. Each block is read once, even if several devices hold it."""
    arrays = {}
    for bounds, devices in _by_part(shape, sharding).items():
        part = read(bounds)
        for device in devices:
            own = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            arrays[device] = jax.device_put(part, own)
        jax.block_until_ready([arrays[device] for device in devices])
    order = sharding.addressable_devices_indices_map(shape)
    return jax.make_array_from_single_device_arrays(shape, sharding, [arrays[device] for device in order])


class _Reader:
    """Opens a model's files once, and reads slices of their tensors."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self.files: dict[str, Path] = {}
        self.handles: dict[Path, Any] = {}

    def __enter__(self) -> _Reader:
        self.files = weight_files.places(self.folder)
        with contextlib.ExitStack() as stack:
            for path in sorted(set(self.files.values())):
                self.handles[path] = stack.enter_context(weight_files.opened(path))
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stack.close()

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Raise InputError unless the files hold exactly the expected tensors, with their shapes. Reads no values."""
        for name, needed in expected.items():
            if name not in self.files:
                raise weight_files.missing(self.folder, name)
            tensor = self._tensor(name)
            stored = tuple(tensor.get_shape())
            if stored != needed:
                raise InputError(f"{self.folder}: tensor {name} has shape {stored}, config.json asks for {needed}")
            weight_files.check_dtype(self.folder, name, tensor.get_dtype())
        weight_files.check_known(self.folder, self.files, expected)

    def read(self, source: Source, name: str, shape: tuple[int, ...], bounds: Bounds, out: np.ndarray) -> None:
        """See `Reader`. Raises InputError for values that are not finite."""
        read_part(self._tensor(name), source, shape, bounds, out)
        if out.size and not (np.isfinite(out.min()) and np.isfinite(out.max())):
            raise weight_files.not_finite(self.files[name], name)

    def _tensor(self, name: str) -> Any:
        return self.handles[self.files[name]].get_slice(name)


def read_part(tensor: Any, source: Source, shape: tuple[int, ...], bounds: Bounds, out: np.ndarray) -> None:
    """Write the block `bounds` of a kernel of this `shape` into `out`, from slices of the stored `tensor`."""
    if source.inputs == 0:
        part = _flat(bounds, shape)
        out.reshape(-1)[:] = tensor[part.start : part.stop]
        return
    inputs = source.inputs or 1
    first, last = _flat(bounds[:inputs], shape[:inputs]), _flat(bounds[inputs:], shape[inputs:])
    matrix = out.reshape(len(first), len(last))
    rows, columns, target = (first, last, matrix) if source.inputs is None else (last, first, matrix.T)
    step = max(1, CHUNK_BYTES // (4 * max(1, len(columns))))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        at = source.row + rows.start
        target[start:stop] = tensor[at + start : at + stop, columns.start : columns.stop]


def _flat(bounds: Bounds, shape: tuple[int, ...]) -> range:
    """The range that a block covers after its dimensions are flattened. Only the first dimension may be split."""
    if any(len(bound) != size for bound, size in zip(bounds[1:], shape[1:])):
        raise ValueError("only the leading dimension of a flattened pair can be split")
    step = math.prod(shape[1:])
    return range(bounds[0].start * step, bounds[0].stop * step)
