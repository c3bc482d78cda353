"""Reads and writes the safetensors files of a Hugging Face model: a single file, or several files with an index."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore  # noqa: F401  with it NumPy knows bfloat16
from safetensors import SafetensorError, safe_open

from shared.errors import InputError
from shared.policy.families import MODEL_CONFIG
from shared.storage import files

SHARD_BYTES = 4 * 2**30  # the largest size of a file
COMPARED_BYTES = 2**26  # tensors are compared in parts of at most so many bytes
NOT_WEIGHTS = (
    "rotary_emb.inv_freq"  # older model directories may store this table; it is ignored, since it can be computed
)
EMBEDDING = "model.embed_tokens.weight"
TIED = "lm_head.weight"  # some model directories store it even if the head is the embedding
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the dtypes that can be read, the widest first
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write(
    folder: Path, tensors: Iterable[tuple[str, Any]], save_file: Callable[..., Any], *, limit: int | None = None
) -> None:
    """Write the weights of a model from an iterator of (name, tensor), with NumPy or PyTorch tensors.

    `save_file` is the function of safetensors for these tensors. A file is written when the next tensor would make it larger
    than `limit` bytes (by default SHARD_BYTES), so only so many bytes are in memory at once. A single file has no index.
    """
    limit = limit or SHARD_BYTES
    part: dict[str, Any] = {}
    size = total = count = 0
    file_of: dict[str, int] = {}

    def close() -> None:
        nonlocal count
        save_file(part, folder / _part(count), metadata={"format": "pt"})
        count += 1
        part.clear()

    for name, tensor in tensors:
        if part and size + tensor.nbytes > limit:
            close()
            size = 0
        part[name], file_of[name] = tensor, count
        size, total = size + tensor.nbytes, total + tensor.nbytes
    close()
    if count == 1:
        (folder / _part(0)).rename(folder / SINGLE)
        return
    file_names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    for number, file_name in enumerate(file_names):
        (folder / _part(number)).rename(folder / file_name)
    weight_map = {name: file_names[number] for name, number in file_of.items()}
    files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def copy_config_and_tokenizer(source: Path, target: Path) -> None:
    """Copy the configuration and the tokenizer of the model in `source` to `target`, which already holds weights.

    The dtype in `config.json` becomes that of the weights in `target`. Transformers loads a model in the dtype that config.json
    states; with another dtype it would round the weights.
    """
    files.copy_companions(source, target)
    config = files.read_json(target / MODEL_CONFIG)
    stored = {kind for _, _, kind in _headers(target)}
    widest = next(name for kind, name in DTYPES.items() if kind in stored)
    files.write_json(target / MODEL_CONFIG, {**_with_dtype(config, widest), "torch_dtype": widest, "dtype": widest})


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration with the dtype `name`, in all places that state a dtype, also in parts such as text_config."""

    def changed(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _with_dtype(value, name)
        stated = key in ("torch_dtype", "dtype") and isinstance(value, str) and value.endswith(("float16", "float32"))
        return name if stated else value

    return {key: changed(key, value) for key, value in config.items()}


def places(folder: Path) -> dict[str, Path]:
    """The file of each tensor in a model directory, by tensor name, without tables that are computed (NOT_WEIGHTS).

    Raises InputError if a file is missing or truncated, or does not belong to the model; if a tensor that the index names is
    missing; if a tensor is stored twice with different values; or if there is a separate head although config.json says that
    the embedding is the head.
    """
    indexed = _index(folder)
    file_of: dict[str, Path] = {}
    for path, name, _ in _headers(folder):
        if name.endswith(NOT_WEIGHTS):
            continue
        if name in file_of and not _same((file_of[name], name), (path, name)):
            raise InputError(
                f"{folder}: tensor {name} is in {file_of[name].name} and in {path.name} with other values; remove the file that "
                "is not of this model"
            )
        if name not in file_of or indexed.get(name) == path:
            file_of[name] = path
    for name, path in indexed.items():
        if file_of.get(name) != path and not name.endswith(NOT_WEIGHTS):
            raise InputError(f"{path}: tensor {name} is missing, though the index names it")
    _check_tied(folder, file_of)
    return file_of


def _check_tied(folder: Path, file_of: dict[str, Path]) -> None:
    config = folder / MODEL_CONFIG
    if TIED not in file_of or EMBEDDING not in file_of or not config.is_file():
        return
    fields = files.read_json(config)
    tied = isinstance(fields, dict) and fields.get("tie_word_embeddings")
    if tied and not _same((file_of[EMBEDDING], EMBEDDING), (file_of[TIED], TIED)):
        raise InputError(
            f"{folder}: config.json says tie_word_embeddings = true, but {TIED} in {file_of[TIED].name} is not {EMBEDDING}; set "
            "tie_word_embeddings to false to use it (as Transformers does), or remove that tensor"
        )


def parts(folder: Path) -> list[Path]:
    """The files that hold the weights, sorted by name. Raises InputError if there are none."""
    indexed = _index(folder)
    return sorted(set(indexed.values())) if indexed else [folder / SINGLE]


def _index(folder: Path) -> dict[str, Path]:
    """The file of each tensor as the index states it; empty for a model in a single file. Raises InputError if it is wrong."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; give a Hugging Face model directory")
        return {}
    content = files.read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: no weight_map from tensors to files")
    if (folder / SINGLE).is_file() and SINGLE not in names.values():
        raise InputError(f"{folder}: {SINGLE} and {INDEX} are two models; remove the one that is not meant")
    return {name: folder / file for name, file in names.items()}


def _headers(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """The file, the name and the dtype of each tensor."""
    for path in parts(folder):
        with opened(path) as stored:
            for name in stored.keys():
                yield path, name, stored.get_slice(name).get_dtype()


@contextlib.contextmanager
def opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open a safetensors file. Raises InputError if it is missing or truncated."""
    try:
        stored = safe_open(path, framework=framework)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, though the index names it") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: truncated or not safetensors ({error})") from None
    with stored:
        yield stored


def _same(left_tensor: tuple[Path, str], right_tensor: tuple[Path, str]) -> bool:
    """Whether two stored tensors, each a file and a name, have the same values; their dtypes may differ."""
    with opened(left_tensor[0]) as left_file, opened(right_tensor[0]) as right_file:
        left, right = left_file.get_slice(left_tensor[1]), right_file.get_slice(right_tensor[1])
        shape = left.get_shape()
        if shape != right.get_shape():
            return False
        for tensor, name in ((left, left_tensor[1]), (right, right_tensor[1])):
            check_dtype(left_tensor[0].parent, name, tensor.get_dtype())
        if not shape:
            return bool(
                np.array_equal(
                    left_file.get_tensor(left_tensor[1]), right_file.get_tensor(right_tensor[1]), equal_nan=True
                )
            )
        step = max(1, COMPARED_BYTES // (4 * max(1, int(np.prod(shape[1:])))))
        ranges = (slice(at, min(at + step, shape[0])) for at in range(0, shape[0], step))
        values = ((left[rows].astype(np.float32), right[rows].astype(np.float32)) for rows in ranges)
        return all(np.array_equal(a, b, equal_nan=True) for a, b in values)


def check_dtype(folder: Path, name: str, kind: str) -> None:
    """Raise InputError if a tensor is stored in a dtype that cannot be read."""
    if kind not in DTYPES:
        raise InputError(f"{folder}: tensor {name} is stored as {kind}; only {', '.join(DTYPES)} are read")


def missing(folder: Path, name: str) -> InputError:
    """The error for a tensor that is missing."""
    hint = "; if the embedding is the head, set tie_word_embeddings to true in config.json" if name == TIED else ""
    return InputError(f"{folder}: tensor {name} is missing{hint}")


def not_finite(path: Path, name: str) -> InputError:
    """The error for a tensor with values that are infinite or not a number."""
    return InputError(f"{path}: tensor {name} holds values that are not finite; the file is damaged, copy it again")


def check_known(folder: Path, stored: Iterable[str], expected: Collection[str]) -> None:
    """Raise InputError if a stored tensor does not belong to the model. Otherwise weights of another model could go unnoticed."""
    others = [name for name in stored if name not in expected and name != TIED and not name.endswith(NOT_WEIGHTS)]
    if others:
        raise InputError(f"{folder}: tensor {min(others)} is not of the model that config.json describes")


def _part(place: int) -> str:
    return f"part-{place:05d}.safetensors"
