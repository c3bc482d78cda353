"""The rows of a long task, written part by part: started again after an interruption, the task goes on after the last part.

    folder/request.json       what was asked for; another request in the same folder is refused
    folder/parts/00000.jsonl  the rows of the first part, one JSON value a line; and so on

Process 0 writes and reads; it tells the other processes how many rows there are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.backend import Backend, told_by_first
from shared.errors import InputError
from shared.storage import files

REQUEST_FILE = "request.json"
COMPLETIONS_FILE = "completions.jsonl"  # records and answers as text
PARTS = "parts"
BLOCKS, BLOCK_BYTES = 64, 65_536  # how many pieces of a large file are read, and how many bytes each
WHOLE_BYTES = 2**24  # a file of at most so many bytes is read whole


class Kept:
    """The rows of a task in `folder`, with those of an earlier start. Every process makes one of these and adds rows to it.

    `done` is the number of rows that were there at the start, the same in every process. `rows` holds all rows in process 0,
    and in the others only those that were added since.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], backend: Backend):
        """Raises InputError where the folder holds rows of another request (see `request_changes`), or a damaged part."""
        self.folder, self._writes = folder, backend.process == 0
        self.rows: list[Any] = []
        if self._writes:
            check_request(folder, request)
            self.rows = [row for path in self._paths() for row in _read(path)]
        self._request = dict(request)
        self.done = told_by_first(backend, len(self.rows))

    def add(self, rows: Sequence[Any]) -> None:
        """Add the rows of the next part, JSON values. When this returns the whole part is on disk."""
        self.rows.extend(rows)
        if self._writes and rows:
            if not (
                self.folder / REQUEST_FILE
            ).is_file():  # only now, so that a start that fails before leaves the folder free
                files.write_json(self.folder / REQUEST_FILE, self._request)
            files.write_json_lines(self.folder / PARTS / f"{len(self._paths()):05d}.jsonl", rows)

    def remove_parts(self) -> None:
        """Remove the rows from disk, after they were written elsewhere; the request stays."""
        if self._writes:
            files.remove(self.folder / PARTS)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{PARTS}/*.jsonl") if re.fullmatch(r"\d{5}", path.stem))


def request_changes(folder: Path, request: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which the request in `folder` differs from `request`; none where the folder has no request yet."""
    path = folder / REQUEST_FILE
    if not path.is_file():
        return []
    earlier = files.read_json(path)
    if not isinstance(earlier, dict):
        raise InputError(f"{path}: not a request as this program writes it; remove {folder}, or give another --out")
    return [name for name in {**earlier, **request} if earlier.get(name) != request.get(name)]


def check_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Raise InputError where `folder` was made for another request."""
    changed = request_changes(folder, request)
    if changed:
        raise InputError(
            f"{folder}: holds answers to another request (it differs in {', '.join(changed[:5])}); give another --out, or "
            "remove that one"
        )


def digest(values: Iterable[Any]) -> str:
    """A short digest of JSON values, in their order."""
    hasher = hashlib.blake2b(digest_size=16)
    for value in values:
        hasher.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()


def model_digest(folder: Path) -> str:
    """A digest of a model directory: the name and size of each file, small files whole, and pieces from all parts of large ones.

    It is quick for a model of any size. It differs for other weights, another tokenizer or another configuration, but it is
    no check for damage.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *files.COMPANIONS)):
        size = path.stat().st_size
        hasher.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            step = BLOCK_BYTES if size <= WHOLE_BYTES else max(BLOCK_BYTES, (size - BLOCK_BYTES) // (BLOCKS - 1))
            for start in range(0, size, step):
                stream.seek(start)
                hasher.update(stream.read(BLOCK_BYTES))
    return hasher.hexdigest()


def _read(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(
            f"{path}: a damaged part of the answers; remove it and all later ones, and start again"
        ) from None
