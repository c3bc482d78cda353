"""Checkpoints through TensorStore: float32 arrays, written by all processes. A save is whole or absent.

A checkpoint is a folder named by its step. It holds `meta.json`, and in each of the folders `params`, `exp_avg`, `exp_avg_sq` and
`reference` one flat Zarr array for each parameter, under its Hugging Face name. Nothing in it depends on the ZeRO stage or on the
number of processes, so it can be restored with any. It holds no pickle. Each chunk has a checksum, and so has `meta.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
import torch.distributed as dist

from creason_torch.checkpoint import from_jax
from creason_torch.checkpoint.from_jax import OrbaxArrays
from shared.errors import InputError, reason
from shared.storage import files
from shared.storage.checkpoints import FORMAT, META, REMEDY

CHUNK = 2**24  # elements: 64 MiB


class Checkpoints:
    """The checkpoints in a folder. The newest `keep` are kept."""

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: Iterable[tuple[str, str, torch.Tensor]], extra: Mapping[str, int]) -> None:
        """Write `state`, (kind, name, whole tensor) one at a time and the same in every process, as checkpoint `step`.

        Each process writes its share of the chunks of every array. If this save is killed, the last one stays whole. Raises
        InputError where it cannot be written.
        """
        partial = self.folder / f".{step}.partial"
        try:
            with files.writing(self.folder):
                self._save(partial, step, state, extra)
        except InputError:
            if dist.get_rank() == 0:
                files.remove(partial)
            raise

    def _save(
        self, partial: Path, step: int, state: Iterable[tuple[str, str, torch.Tensor]], extra: Mapping[str, int]
    ) -> None:
        if dist.get_rank() == 0:
            for partial_save in self.folder.glob(".*.partial"):  # saves that were killed
                files.remove(partial_save)
            partial.mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
        dist.barrier()
        names: dict[str, list[str]] = {}
        for kind, name, value in state:
            names.setdefault(kind, []).append(name)
            _write_share(partial / kind / name, value)
        dist.barrier()
        if dist.get_rank() == 0:
            meta = {"format": FORMAT, "step": step, "extra": dict(extra), "arrays": names}
            files.write_json(partial / META, files.sealed(meta))
            files.remove(self.folder / str(step))
            partial.rename(self.folder / str(step))
            for old in self.steps()[: -self.keep]:
                files.remove(self.folder / str(old))
        dist.barrier()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def open(self, step: int | None, config: Any) -> tuple[int, dict[str, int], Arrays | OrbaxArrays] | None:
        """The newest checkpoint, or that of `step`, as (step, extra, arrays); None where there is no checkpoint.

        It may be a checkpoint of the JAX backend. `config` is the model's Hugging Face configuration. Raises InputError where
        the checkpoint is missing or damaged.
        """
        saved = self.steps()
        if not saved and step is None:
            return None
        chosen = saved[-1] if step is None else step
        if chosen not in saved:
            raise InputError(
                f"{self.folder}: no checkpoint of step {chosen}; there are {', '.join(map(str, saved)) or 'none'}"
            )
        folder = self.folder / str(chosen)
        if (folder / from_jax.STATE).is_dir():
            arrays = OrbaxArrays(folder, config)
            return chosen, arrays.extra(), arrays
        meta = files.read_json(folder / META)
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            version = meta.get("format") if isinstance(meta, dict) else None
            raise InputError(f"{folder}: written by another version (format {version}); remove it")
        if files.is_sealed(meta):  # earlier versions did not seal it
            meta = files.unsealed(meta, folder / META, REMEDY)
        extra = meta.get("extra")
        if not isinstance(extra, dict) or "updates" not in extra:
            raise InputError(f"{folder / META}: does not say how many updates were made; remove that folder")
        return chosen, dict(extra), Arrays(folder)


class Arrays:
    """Reads the arrays of a checkpoint."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, kind: str, name: str, shape: torch.Size) -> torch.Tensor:
        """Read one whole array. Raises InputError where it is missing, truncated, damaged or of another size."""
        try:
            array = tensorstore.open(_spec(self.folder / kind / name), open=True).result()
            if array.shape != (shape.numel(),):
                raise ValueError(f"{array.shape[0]} elements where the model has {shape.numel()}")
            values = array.read().result()
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.folder}: not a whole checkpoint of this model ({kind} of {name}: {reason(error)}); {REMEDY}"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape)


def _spec(path: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": files.kvstore(path),
        # A missing chunk is an error; so a chunk of zeros must be stored too.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def _write_share(path: Path, value: torch.Tensor) -> None:
    """Write this process's chunks of one array, and create the array's metadata."""
    flat = value.reshape(-1)
    size = flat.numel()
    chunk = max(1, min(CHUNK, size))
    metadata = {
        "shape": [size],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "fill_value": 0.0,
    }
    array = tensorstore.open(_spec(path) | {"metadata": metadata}, create=True, open=True).result()
    share = -(-size // chunk)  # chunks in all
    share = -(-share // dist.get_world_size()) * chunk
    begin, end = min(size, share * dist.get_rank()), min(size, share * (dist.get_rank() + 1))
    if begin < end:
        array[begin:end].write(flat[begin:end].float().cpu().numpy()).result()
