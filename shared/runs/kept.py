"""What a long task has done so far, written part by part: started again after an interruption, it goes on behind the last part.

    folder/request.json       what was asked for; another request in the same folder is refused
    folder/parts/00000.jsonl  the rows of the first part, one JSON value a line; and so on

Process 0 writes and reads; the others learn how many rows there are.
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
BLOCKS, BLOCK = 64, 65_536  # of each large file so many pieces of so many bytes are read
WHOLE = 2**24  # bytes; a smaller file is read whole


class Kept:
    """The rows of a task in `folder`, those of an earlier start included. Every process makes one and adds to it.

    `done` is the number of rows that were there at the start, equal in every process. `rows` holds, in process 0, all of
    them, and in the others only what was added since.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], backend: Backend):
        """Raises InputError where the folder holds rows of another request (`differences` tells), or a damaged part."""
        self.folder, self._writes = folder, backend.process == 0
        self.rows: list[Any] = []
        if self._writes:
            check_request(folder, request)
            self.rows = [row for path in self._paths() for row in _read(path)]
        self._request = dict(request)
        self.done = told_by_first(backend, len(self.rows))

    def add(self, rows: Sequence[Any]) -> None:
        """The rows of the next part, JSON values: on disk, whole, when this returns."""
        self.rows.extend(rows)
        if self._writes and rows:
            if not (self.folder / REQUEST_FILE).is_file():  # only now: a start that fails before binds nobody
                files.write_json(self.folder / REQUEST_FILE, self._request)
            files.write_json_lines(self.folder / PARTS / f"{len(self._paths()):05d}.jsonl", rows)

    def remove_parts(self) -> None:
        """Forget the rows on disk, which somebody has put elsewhere; what was asked for stays."""
        if self._writes:
            files.remove(self.folder / PARTS)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{PARTS}/*.jsonl") if re.fullmatch(r"\d{5}", path.stem))


def differences(folder: Path, request: Mapping[str, Any]) -> list[str]:
    """In which fields what `folder` was made for differs from `request`; none where nothing is there yet."""
    path = folder / REQUEST_FILE
    if not path.is_file():
        return []
    held = files.read_json(path)
    if not isinstance(held, dict):
        raise InputError(f"{path}: not what was asked for; remove {folder}, or give another --out")
    return [name for name in {**held, **request} if held.get(name) != request.get(name)]


def check_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Raise InputError where `folder` was made for another request."""
    changed = differences(folder, request)
    if changed:
        raise InputError(
            f"{folder}: holds answers to another request (it differs in {', '.join(changed[:5])}); give another --out, or "
            "remove that one"
        )


def digest(values: Iterable[Any]) -> str:
    """A short digest of JSON values, in their order."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        found.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return found.hexdigest()


def model_digest(folder: Path) -> str:
    """Tells one model directory from another: every file's name and size, small ones whole, of weights pieces all over them.

    That is quick for any size of model and sees other weights, another tokenizer or another configuration; it is no check
    for damage.
    """
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *files.COMPANIONS)):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            step = BLOCK if size <= WHOLE else max(BLOCK, (size - BLOCK) // (BLOCKS - 1))
            for start in range(0, size, step):
                stream.seek(start)
                found.update(stream.read(BLOCK))
    return found.hexdigest()


def _read(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(
            f"{path}: a damaged part of the answers; remove it and all later ones, and start again"
        ) from None
