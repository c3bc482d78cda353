"""Reads a checkpoint of the PyTorch backend through TensorStore, without torch: weights, moments, reference, position."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore

from creason_jax import distributed
from creason_jax.model import DecoderConfig, read_params
from creason_jax.model.weights import Bounds, read_part, stored_shapes
from shared.errors import InputError, reason
from shared.policy.weight_names import Source
from shared.storage import files
from shared.storage.checkpoints import FORMAT, MEAN, META, PARAMS, REFERENCE, REMEDY, SQUARE

PIECE = 2**24  # elements read at once: 64 MiB, a chunk of what the PyTorch backend writes


def written_by_torch(folder: Path) -> bool:
    """Whether this checkpoint has the form of the PyTorch backend's, whole or not."""
    return (folder / META).is_file() or (folder / PARAMS).is_dir()


class ZarrArrays:
    """What the PyTorch backend saved: flat float32 arrays with Hugging Face names."""

    def __init__(self, folder: Path):
        """Raises InputError where the checkpoint is of another version, or does not say what it holds."""
        self.folder = folder
        meta = files.read_json(folder / META)
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            found = meta.get("format") if isinstance(meta, dict) else None
            raise InputError(f"{folder}: written by another version (format {found}); remove it")
        if files.is_sealed(meta):  # earlier versions did not seal it
            meta = files.unsealed(meta, folder / META, REMEDY)
        noted = meta.get("extra")
        if not isinstance(noted, dict) or "updates" not in noted:
            raise InputError(f"{folder / META}: does not say how many updates were made; remove that folder")
        self._noted: dict[str, int] = noted

    def extra(self) -> dict[str, int]:
        """What the run noted beside the state."""
        return {name: value for name, value in self._noted.items() if name != "updates"}

    def state(self, target: Any, model: DecoderConfig) -> Any:
        """A learner's state with the shapes and shardings of `target`; each device's slices are read, and nothing else.

        Where a matrix is split by columns, each of its devices reads whole rows and keeps its part of them. Raises
        InputError where an array is missing, truncated, damaged or of another size.
        """

        def tree(kind: str, like: Any) -> Any:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
            found = read_params(_Kind(self.folder, kind, stored_shapes(model)), model, shardings)
            return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), found, like)

        updates = distributed.place(np.int32(self._noted["updates"]), target.step.sharding)
        count = distributed.place(np.int32(self._noted["updates"]), target.moments.count.sharding)
        mu, nu = tree(MEAN, target.moments.mu), tree(SQUARE, target.moments.nu)
        return target._replace(
            params=tree(PARAMS, target.params),
            moments=target.moments._replace(count=count, mu=mu, nu=nu),
            reference=None if target.reference is None else tree(REFERENCE, target.reference),
            step=updates,
        )


class _Kind:
    """The arrays of one kind (`creason_jax.model.weights.Reader`)."""

    def __init__(self, folder: Path, kind: str, shapes: dict[str, tuple[int, ...]]):
        self.folder, self.kind, self.shapes = folder, kind, shapes

    def read(self, source: Source, name: str, shape: tuple[int, ...], bounds: Bounds, out: np.ndarray) -> None:
        """See `Reader`. Raises InputError where the array is missing, truncated, damaged or of another size."""
        read_part(_Flat(self._open(name), self.shapes[name], self, name), source, shape, bounds, out)

    def _open(self, name: str) -> Any:
        path = self.folder / self.kind / name
        size = math.prod(self.shapes[name])
        # A missing chunk is an error, never zeros.
        spec = {
            "driver": "zarr3",
            "kvstore": files.kvstore(path),
            "fill_missing_data_reads": False,
        }
        try:
            array = tensorstore.open(spec, open=True).result()
            if array.shape != (size,):
                raise ValueError(f"{array.shape[0]} elements where the model has {size}")
        except (ValueError, OSError) as error:
            raise self.broken(name, error) from error
        return array

    def broken(self, name: str, error: Exception) -> InputError:
        """What to say of an array that cannot be read."""
        return InputError(
            f"{self.folder}: not a whole checkpoint of this model ({self.kind} of {name}: {reason(error)}); {REMEDY}"
        )


class _Flat:
    """A tensor of `shape` that is stored flat, to be sliced; at most `PIECE` elements beside the slice are in memory."""

    def __init__(self, array: Any, shape: tuple[int, ...], kind: _Kind, name: str):
        self.array, self.shape, self.kind, self.name = array, shape, kind, name

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        rows, *columns = [
            range(*part.indices(size))
            for part, size in zip(index if isinstance(index, tuple) else (index,), self.shape, strict=True)
        ]
        width = math.prod(self.shape[1:])
        kept = tuple(slice(part.start, part.stop) for part in columns)
        found = np.empty([len(rows), *map(len, columns)], np.float32)
        height = max(1, PIECE // width)
        for begin in range(rows.start, rows.stop, height):
            end = min(rows.stop, begin + height)
            try:
                values = self.array[begin * width : end * width].read().result()
            except (ValueError, OSError) as error:
                raise self.kind.broken(self.name, error) from error
            found[begin - rows.start : end - rows.start] = values.reshape(-1, *self.shape[1:])[:, *kept]
        return found
