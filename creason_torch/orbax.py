"""Reads a checkpoint of the JAX backend through TensorStore, without jax: weights, moments, reference, position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch

from shared import files
from shared.errors import InputError
from shared.kernels import Source, sources, to_rows

STATE, EXTRA = "state", "extra/metadata"
KINDS = {"params": "params", "exp_avg": "moments.mu", "exp_avg_sq": "moments.nu", "reference": "reference"}
REASON_LENGTH = 200  # characters of a library's message that are shown


class OrbaxArrays:
    """Twin of `creason_torch.checkpoint.Arrays` over the arrays of the Flax decoder, stacked over layers."""

    def __init__(self, folder: Path, config: Any):
        """`config` is the Hugging Face configuration of the model that reads."""
        self.folder = folder
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
        return {**files.read_json_object(self.folder / EXTRA), "updates": int(self._open("step").read().result())}

    def read(self, kind: str, name: str, shape: torch.Size) -> torch.Tensor:
        """One whole tensor as Hugging Face has it. Raises InputError where it is missing, damaged or of another size."""
        if name not in self._parts:
            raise InputError(f"{self.folder}: the JAX backend has no tensor {name}; this model is of another family")
        found = []
        for kernel, source, layer in self._parts[name]:
            array = self._open(f"{KINDS[kind]}.{kernel}")
            values = self._values(array if layer is None else array[layer], kernel)
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

    def _values(self, array: Any, path: str) -> np.ndarray:
        try:
            # Moments may be stored in bfloat16.
            return np.asarray(array.read().result(), np.float32)
        except (ValueError, OSError) as error:
            raise InputError(self._broken(path, error)) from error

    def _broken(self, path: str, error: Exception) -> str:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        return f"{self.folder}: not a whole checkpoint of the JAX backend ({path}: {reason})"
