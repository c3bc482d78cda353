"""Files that are complete or absent: each is written under a temporary name, then renamed."""

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
SEAL = "json_crc32"  # the key that holds the checksum of all other keys of a JSON object
COMPANIONS = (".json", ".jinja", ".model", ".txt")  # the other files of a Hugging Face model directory
# Errors of the operating system that no program can avoid: the disk is full, or writing is not allowed.
FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
REFUSALS = {
    *FULL_OR_CLOSED, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE, errno.ENOENT,
    errno.ENOTDIR, errno.ESTALE,
}  # fmt: skip
# How error messages of Rust libraries, TensorStore and Arrow give the error number; DuckDB gives only its text.
ERROR_NUMBER = re.compile(r"os error (\d+)|os_error_code='(\d+)'|errno (\d+)", re.IGNORECASE)


def refusal(error: BaseException) -> str | None:
    """The operating system's reason in its own words, such as "No space left on device"; None for any other error."""
    if isinstance(error, InputError):
        return error.reason if isinstance(error, Unwritable) else None
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in REFUSALS else None
    match = ERROR_NUMBER.search(str(error))
    if match is not None:
        number = int(next(filter(None, match.groups())))
        return os.strerror(number) if number in REFUSALS else None
    return next((text for text in map(os.strerror, FULL_OR_CLOSED) if text in str(error)), None)


class Unwritable(InputError):
    """A file or folder cannot be written. `reason` is the operating system's message."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(
            f"{path}: cannot be written ({reason}); check that the disk has free space and that this process may write "
            "there, then run the same command again"
        )
        self.filename, self.reason = str(path), reason


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Raise InputError, with `path` in its message, if the operating system stops this block from writing in `path`."""
    try:
        yield
    except Exception as error:  # some libraries raise a plain Exception; an error with another cause is raised again
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
    """Make a folder and its parents. Returns the folders that were made, the innermost first.

    Raises OSError if it cannot be made, and then leaves no new folder behind.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the empty ones of `folders`, which are listed from the innermost to the outermost."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_folder(flag: str, folder: Path) -> None:
    """Raise InputError if the directory that a flag names cannot be written, or is missing and cannot be made."""
    check_folder_name(flag, folder)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise InputError(f"--{flag}={folder}: cannot be made ({there} is a file); give another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--{flag}={folder}: cannot be written ({there} does not allow it); give another directory")


def check_folder_name(flag: str, folder: Path) -> None:
    """Raise InputError if a flag names an address or a file, which is no folder of this machine."""
    if re.match(r"\w+:/", str(folder)):
        raise InputError(f"--{flag}={folder}: must be a folder; an address in a bucket is not understood here")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--{flag}={folder}: is a file; give a directory")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the block ends without an error, it is renamed to `path`; else it is removed.

    The block may make a file or a folder. Only the owner may read it. Missing parent folders are made, and removed again if
    the block fails. Raises InputError if the file system does not allow it.
    """
    with writing(path):
        new_folders = make_folder(path.parent)
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
        remove_empty(new_folders)
        raise


def kvstore(folder: Path) -> dict[str, str]:
    """How TensorStore is given a folder: an absolute path without `..`. In a file:// address, % signs would be decoded."""
    return {"driver": "file", "path": f"{folder.resolve()}/"}


def owner_only(path: Path) -> None:
    """Make a file, or a folder with everything in it, readable by its owner only. Links are not changed."""
    for member in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not member.is_symlink():
            os.chmod(member, OWNER_ONLY_FOLDER if member.is_dir() else OWNER_ONLY_FILE)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it. Does nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copy the configuration and the tokenizer of a Hugging Face model, without its weights."""
    for path in sorted(source.iterdir()):
        if path.suffix in COMPANIONS and not path.name.endswith(".index.json"):
            (target / path.name).write_bytes(path.read_bytes())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically from bytes in memory. For files that their library might leave incomplete, such as workbooks."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN, which standard JSON does not have."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write each of `rows` as one line of JSON, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def read_json_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object. Raises InputError if the file holds anything else, or one of `keys` is missing."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; it is damaged, or another file")
    return value


def holds(*keys: str) -> Callable[[Path], bool]:
    """A function that says whether a file is a JSON object with all of `keys`; used by `launch.app.check_result`."""

    def test(path: Path) -> bool:
        try:
            return path.is_file() and bool(read_json_object(path, *keys))
        except InputError:
            return False

    return test


def begins_as_png(path: Path) -> bool:
    """Whether a file begins as a PNG picture does, as `shared.report.plots` writes; used by `launch.app.check_result`."""
    with path.open("rb") as stream:
        return stream.read(8) == b"\x89PNG\r\n\x1a\n"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object `value` with one more key, which holds the checksum of all others."""
    return {**value, SEAL: _content_crc32(value)}


def is_sealed(value: Any) -> bool:
    """Whether `value` has a checksum from `sealed`. Files of earlier versions have none."""
    return isinstance(value, dict) and SEAL in value


def unsealed(value: Mapping[str, Any], name: Path | str, remedy: str) -> dict[str, Any]:
    """The object that was given to `sealed`. Raises InputError if its content no longer has the stored checksum.

    `name` is the file that it was read from, `remedy` what the message tells the user to do.
    """
    content = {key: item for key, item in value.items() if key != SEAL}
    if value.get(SEAL) != _content_crc32(content):
        raise InputError(f"{name}: damaged: it does not hold what was written, as its checksum says; {remedy}")
    return content


def _content_crc32(value: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
