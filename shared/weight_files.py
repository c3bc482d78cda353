"""The safetensors files of a Hugging Face model: one, or several and an index beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from shared import files
from shared.errors import InputError

SHARD_BYTES = 4 * 2**30  # of one file
NOT_WEIGHTS = "rotary_emb.inv_freq"  # some older model directories store this table, which is computed
TIED = "lm_head.weight"  # in some it is stored though it is the embedding
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write(
    folder: Path, tensors: Iterable[tuple[str, Any]], save_file: Callable[..., Any], *, limit: int | None = None
) -> None:
    """Write a stream of (name, tensor), tensors of NumPy or of PyTorch, with the `save_file` of safetensors that goes with it.

    A file is written when the next tensor would make it larger than `limit` bytes (SHARD_BYTES), so no more than that is
    held at once. Where one file holds all it has no index.
    """
    limit = limit or SHARD_BYTES
    part: dict[str, Any] = {}
    size = total = count = 0
    places: dict[str, int] = {}

    def close() -> None:
        nonlocal count
        save_file(part, folder / _part(count), metadata={"format": "pt"})
        count += 1
        part.clear()

    for name, tensor in tensors:
        if part and size + tensor.nbytes > limit:
            close()
            size = 0
        part[name], places[name] = tensor, count
        size, total = size + tensor.nbytes, total + tensor.nbytes
    close()
    if count == 1:
        (folder / _part(0)).rename(folder / SINGLE)
        return
    named = [f"model-{place + 1:05d}-of-{count:05d}.safetensors" for place in range(count)]
    for place, name in enumerate(named):
        (folder / _part(place)).rename(folder / name)
    weight_map = {name: named[place] for name, place in places.items()}
    files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def places(folder: Path) -> dict[str, Path] | None:
    """Tensor -> its file, as the index says; None for a model in one file. Raises InputError where there is neither."""
    index = folder / INDEX
    if index.is_file():
        found = files.read_json(index)
        names = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise InputError(f"{index}: no weight_map from tensors to files")
        return {name: folder / file for name, file in names.items()}
    if not (folder / SINGLE).is_file():
        raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; give a Hugging Face model directory")
    return None


def check_known(folder: Path, stored: Iterable[str], expected: Collection[str]) -> None:
    """Raise InputError for a stored tensor that is none of the model's: another model's weights would go unnoticed."""
    others = [name for name in stored if name not in expected and name != TIED and not name.endswith(NOT_WEIGHTS)]
    if others:
        raise InputError(f"{folder}: tensor {min(others)} is not of the model that config.json describes")


def _part(place: int) -> str:
    return f"part-{place:05d}.safetensors"
