"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import InputError

OWNER_ONLY_FILE = 0o600  # patient-level data: readable by their owner only
OWNER_ONLY_FOLDER = 0o700
SEAL = "json_crc32"  # in a JSON object: the checksum of the rest of it
COMPANIONS = (".json", ".jinja", ".model", ".txt")  # what stands beside the weights of a Hugging Face model
# What an operating system answers where a place cannot be written or read, whatever the program does.
FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
REFUSALS = {
    *FULL_OR_CLOSED, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE, errno.ENOENT,
    errno.ENOTDIR, errno.ESTALE,
}  # fmt: skip
# How other languages' libraries name that answer: Rust, TensorStore, Arrow; DuckDB has its words alone.
NUMBERED = re.compile(r"os error (\d+)|os_error_code='(\d+)'|errno (\d+)", re.IGNORECASE)


def refusal(error: BaseException) -> str | None:
    """What the operating system answered, in its words, or None for an error of another kind."""
    if isinstance(error, InputError):
        return error.reason if isinstance(error, Unwritable) else None
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in REFUSALS else None
    found = NUMBERED.search(str(error))
    if found is not None:
        number = int(next(filter(None, found.groups())))
        return os.strerror(number) if number in REFUSALS else None
    return next((text for text in map(os.strerror, FULL_OR_CLOSED) if text in str(error)), None)


class Unwritable(InputError):
    """A place that cannot be written; `reason` is the operating system's."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(
            f"{path}: cannot be written ({reason}); see that there is room and that this process may write there, then give "
            "the same command again"
        )
        self.filename, self.reason = str(path), reason


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what keeps this block from writing `path`, or a part of it, into an InputError that names it."""
    try:
        yield
    except Exception as error:  # some libraries raise nothing narrower; what is no refusal goes on as it came
        reason = refusal(error)
        if reason is None or _is_about_another_place(error, Path(path)):
            raise
        raise Unwritable(path, reason) from error


def _is_about_another_place(error: Exception, path: Path) -> bool:
    name = getattr(error, "filename", None)
    if not isinstance(name, str | os.PathLike):
        return False
    there, here = Path(name).absolute(), path.absolute()
    return here.parent not in there.parents and there not in here.parents


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were not there, the innermost first.

    Raises OSError where it cannot be made; none is left behind then.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of `folders` that hold nothing, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_folder(flag: str, folder: Path) -> None:
    """Raise InputError where the directory that a flag names is not there and cannot be made, or cannot be written to."""
    check_folder_name(flag, folder)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise InputError(f"--{flag}={folder}: cannot be made ({there} is a file); give another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--{flag}={folder}: cannot be written ({there} does not allow it); give another directory")


def check_folder_name(flag: str, folder: Path) -> None:
    """Raise InputError where what a flag names is an address or a file, and so no folder of this machine."""
    if re.match(r"\w+:/", str(folder)):
        raise InputError(f"--{flag}={folder}: must be a folder; an address in a bucket is not understood here")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--{flag}={folder}: is a file; give a directory")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed.

    Works for a file or a folder, whichever the block makes; it, and all that is in it, is its owner's alone. Folders above it
    are made, and removed again where the block fails. Raises InputError where the file system refuses.
    """
    with writing(path):
        made = make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            remove(temporary)
            yield temporary
            owner_only(temporary)
            if temporary.is_dir():
                remove(path)
            os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        remove_empty(made)
        raise


def kvstore(folder: Path) -> dict[str, str]:
    """A folder as TensorStore wants it named: from the root, without `..`; a text of the form file://... would be decoded."""
    return {"driver": "file", "path": f"{folder.resolve()}/"}


def owner_only(path: Path) -> None:
    """Make a file, or a folder with all that is in it, readable by its owner only; links are left alone."""
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not each.is_symlink():
            os.chmod(each, OWNER_ONLY_FOLDER if each.is_dir() else OWNER_ONLY_FILE)


def remove(path: Path) -> None:
    """Remove a file or a folder tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what stands beside the weights of a Hugging Face model: its configuration and its tokenizer."""
    for path in sorted(source.iterdir()):
        if path.suffix in COMPANIONS and not path.name.endswith(".index.json"):
            (target / path.name).write_bytes(path.read_bytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file at once, atomically. For what its library cannot leave half-written in silence, such as a workbook."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


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
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def read_json_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that has these keys at least. Raises InputError where the file holds something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(found).__name__}")
    missing = [key for key in keys if key not in found]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; it is damaged, or another file")
    return found


def holds(*keys: str) -> Callable[[Path], bool]:
    """A test of whether a file is a JSON object that has all of these keys; for `launch.app.check_result`."""

    def test(path: Path) -> bool:
        try:
            return path.is_file() and bool(read_json_object(path, *keys))
        except InputError:
            return False

    return test


def begins_as_png(path: Path) -> bool:
    """Whether a file is a picture as `shared.report.plots` writes it; for `launch.app.check_result`."""
    with path.open("rb") as stream:
        return stream.read(8) == b"\x89PNG\r\n\x1a\n"


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
