"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.errors import InputError

OWNER_ONLY_FILE = 0o600  # patient-level data: readable by their owner only
OWNER_ONLY_FOLDER = 0o700
SEAL = "json_crc32"  # in a JSON object: the checksum of the rest of it


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed.

    Works for a file or a folder, whichever the block makes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    remove(temporary)
    try:
        yield temporary
        os.chmod(temporary, OWNER_ONLY_FOLDER if temporary.is_dir() else OWNER_ONLY_FILE)
        if temporary.is_dir():
            remove(path)
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what stands beside the weights of a Hugging Face model: its configuration and its tokenizer."""
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.endswith(".index.json"):
            (target / path.name).write_bytes(path.read_bytes())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, since other readers would choke on it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_json(path: Path) -> Any:
    """Read JSON. Raises InputError where the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum of its content in it."""
    return {**value, SEAL: _content_crc32(value)}


def is_sealed(value: Any) -> bool:
    """Whether this is an object from `sealed`; earlier versions wrote none."""
    return isinstance(value, dict) and SEAL in value


def unsealed(value: Mapping[str, Any], name: Path | str, remedy: str) -> dict[str, Any]:
    """What was given to `sealed`. Raises InputError where that is no longer what it holds; `name` is where it was read."""
    content = {key: item for key, item in value.items() if key != SEAL}
    if value.get(SEAL) != _content_crc32(content):
        raise InputError(f"{name}: damaged: it does not hold what was written, as its checksum says; {remedy}")
    return content


def _content_crc32(value: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
