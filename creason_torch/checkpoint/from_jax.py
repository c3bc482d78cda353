"""Reads a checkpoint of the JAX backend through TensorStore, without jax: weights, moments, reference, position.

What is read is held against the checksums that the JAX backend made of the values (`shared.storage.checkpoints` says how).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
import torch.distributed as dist
from tqdm import tqdm

from shared.errors import InputError, reason
from shared.policy.weight_names import Source, sources, to_rows
from shared.storage import files
from shared.storage.checkpoints import CHECKSUMS, MEAN, PARAMS, PLACE, REFERENCE, REMEDY, SCATTER, SQUARE

STATE, EXTRA = "state", "extra/metadata"
KINDS = {PARAMS: "params", MEAN: "moments.mu", SQUARE: "moments.nu", REFERENCE: "reference"}  # as Orbax names them
PIECE = 2**17  # values that are added up at once: what a processor's cache holds


class OrbaxArrays:
    """Twin of `creason_torch.checkpoint.checkpoint.Arrays` over the arrays of the Flax decoder, stacked over layers."""

    def __init__(self, folder: Path, config: Any):
        """`config` is the Hugging Face configuration of the model that reads. Raises InputError for a damaged position."""
        self.folder = folder
        noted = files.read_json(folder / EXTRA)
        if not isinstance(noted, dict):
            raise InputError(f"{folder}: damaged: it does not say where the run was; {REMEDY}")
        if files.is_sealed(noted) or CHECKSUMS in noted:
            noted = files.unsealed(noted, folder, REMEDY)
        self._sums: dict[str, Any] | None = noted.pop(CHECKSUMS, None)
        self._extra: dict[str, int] = noted
        if self._sums is None and (not dist.is_initialized() or dist.get_rank() == 0):
            tqdm.write(
                f"{folder}: an earlier version saved it without checksums, so damage to its values would go unseen"
            )
        table = sources(
            config.model_type,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            intermediate_size=config.intermediate_size,
        )
        # Hugging Face name -> [(kernel, its source, layer or None)] in the order of rows.
        self._parts: dict[str, list[tuple[str, Source, int | None]]] = {}
        for kernel, source in sorted(table.items(), key=lambda item: item[1].row):
            layers: list[int | None] = [None]
            if kernel.startswith("layers."):
                layers = list(range(config.num_hidden_layers))
            for layer in layers:
                self._parts.setdefault(source.name.format(layer), []).append((kernel, source, layer))

    def extra(self) -> dict[str, int]:
        """What the run noted beside the state, and the number of updates made."""
        return {**self._extra, "updates": int(self._values(self._open("step"), "step", None))}

    def read(self, kind: str, name: str, shape: torch.Size) -> torch.Tensor:
        """One whole tensor as Hugging Face has it. Raises InputError where it is missing, damaged or of another size."""
        if name not in self._parts:
            raise InputError(f"{self.folder}: the JAX backend has no tensor {name}; this model is of another family")
        found = []
        for kernel, source, layer in self._parts[name]:
            path = f"{KINDS[kind]}.{kernel}"
            values = self._values(self._open(path), path, layer)
            found.append(to_rows(values, source.inputs))
        whole = np.ascontiguousarray(np.concatenate(found) if len(found) > 1 else found[0])
        if whole.shape != tuple(shape):
            raise InputError(f"{self.folder}: {kind} of {name} has shape {whole.shape}, the model {tuple(shape)}")
        return torch.from_numpy(whole)

    def _open(self, path: str) -> Any:
        store = {"driver": "ocdbt", "base": files.kvstore(self.folder / STATE), "path": f"{path}/"}
        try:
            return tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result()
        except (ValueError, OSError) as error:
            raise InputError(self._broken(path, error)) from error

    def _values(self, array: Any, path: str, layer: int | None) -> np.ndarray:
        """The whole of an array, or a layer of it, float32 but for the number of updates; as it was saved."""
        try:
            stored = np.asarray((array if layer is None else array[layer]).read().result())
        except (ValueError, OSError) as error:
            raise InputError(self._broken(path, error)) from error
        if self._sums is not None:
            noted = self._sums.get(path, {"dtype": "", "sums": []})
            place = layer or 0
            if stored.dtype.name != noted["dtype"] or noted["sums"][place : place + 1] != [checksum(stored)]:
                raise InputError(
                    f"{self.folder}: damaged: {path} does not hold the values that were saved, as its checksum says; "
                    f"{REMEDY}"
                )
        # Moments may be stored in bfloat16.
        return stored if stored.dtype == np.int32 else np.asarray(stored, np.float32)

    def _broken(self, path: str, error: Exception) -> str:
        return f"{self.folder}: not a whole checkpoint of the JAX backend ({path}: {reason(error)})"


def checksum(values: np.ndarray) -> int:
    """Of an array that is not stacked, or of one layer of it; see `shared.storage.checkpoints`."""
    flat = np.ascontiguousarray(values).reshape(-1)
    bits = flat.view({2: np.uint16, 4: np.uint32}[flat.dtype.itemsize])
    places = np.arange(min(PIECE, len(bits)), dtype=np.uint32)
    total = 0
    for begin in range(0, len(bits), PIECE):
        part = bits[begin : begin + PIECE]
        mixed = places[: len(part)] + np.uint32(begin % 2**32)
        mixed *= np.uint32(PLACE)
        mixed ^= part
        for shift, factor in SCATTER:
            mixed ^= mixed >> np.uint32(shift)
            mixed *= np.uint32(factor)
        total += int(mixed.sum(dtype=np.uint32))
    return total % 2**32
