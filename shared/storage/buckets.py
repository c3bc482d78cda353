"""Reading and writing files that may be in a bucket: `gs://`, `s3://`, or another file system that fsspec knows.

A name that contains `://` is an address in a bucket; any other name is a path on this machine. The libraries that access
buckets raise many kinds of exceptions. Here all of them become an InputError of one line, with the address and the fix.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import fsspec
from fsspec.callbacks import Callback
from fsspec.registry import known_implementations
from tqdm import tqdm

from shared.errors import InputError, reason
from shared.storage import files

MODEL_FILES = (
    ".safetensors",
    ".json",
    ".jinja",
    ".model",
    ".txt",
)  # the files of a model that are read; no other formats
REMOTE_CHECKSUMS = (
    "md5Hash",
    "crc32c",
    "ETag",
    "etag",
    "content_md5",
)  # the names that the file systems of Google, Amazon and Azure use
# Errors of the bucket libraries that are not an OSError: (module, name). Each is looked up only if its module is loaded.
CLIENT_ERRORS = (
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
)


def is_address(name: Path | str) -> bool:
    """Whether a name is an address in a bucket, and not a path."""
    return isinstance(name, str) and "://" in name


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that the loaded bucket libraries raise when a bucket refuses a request or does not answer."""
    clients = [getattr(sys.modules[module], name) for module, name in CLIENT_ERRORS if module in sys.modules]
    return OSError, ValueError, *clients


@contextlib.contextmanager
def understood(address: Path | str) -> Iterator[None]:
    """Turn every error of a bucket in this block into an InputError that names `address`. A path changes nothing."""
    if not is_address(address):
        yield
        return
    try:
        yield
    except ImportError as error:
        class_name = known_implementations.get(str(address).split("://")[0], {}).get("class", "fsspec")
        package = class_name.split(".")[0]
        fix = str(error) if package == "fsspec" else f"its file system is not installed; pip install {package}"
        raise InputError(f"{address}: {fix}") from error
    except FileNotFoundError as error:
        raise InputError(f"{address}: no such object or bucket; check the address") from error
    except failures() as error:
        raise InputError(
            f"{address}: not accessible ({reason(error)}); check the address, and that this machine may use it (Google: its "
            "service account, or gcloud auth application-default login; S3: AWS_PROFILE or AWS_ACCESS_KEY_ID)"
        ) from error


def join(folder: Path | str, name: str) -> Path | str:
    """The path or address of the file `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if isinstance(folder, str) and is_address(folder) else Path(folder) / name


def is_file(name: Path | str) -> bool:
    """Whether this file exists. Raises InputError if its bucket cannot be accessed."""
    if not is_address(name):
        return Path(name).is_file()
    with understood(name):
        filesystem, path = _opened(name)
        with contextlib.suppress(FileNotFoundError):
            return filesystem.info(path)["type"] == "file"  # fsspec's isfile returns False after any error
    return False


def read_bytes(address: str) -> bytes:
    """The bytes of the object at an address. Raises InputError if it cannot be read."""
    with understood(address):
        filesystem, path = _opened(address)
        return filesystem.cat_file(path)


@contextlib.contextmanager
def reading(name: Path | str) -> Iterator[BinaryIO]:
    """Open a file, or the object at an address, for reading bytes. Call it inside `understood`.

    Raises InputError if a file cannot be opened.
    """
    if not is_address(name):
        try:
            stream: Any = Path(name).open("rb")
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    else:
        filesystem, path = _opened(name)
        stream = filesystem.open(path, "rb")
    with stream:
        yield stream


def size(name: Path | str) -> int:
    """The size of a file or of an object in bytes. Raises InputError if it does not exist."""
    if not is_address(name):
        try:
            return Path(name).stat().st_size
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    with understood(name):
        filesystem, path = _opened(name)
        return filesystem.info(path)["size"]


def checksums(address: str) -> dict[str, str | None]:
    """The bucket's checksum of each file in the model directory at an address, by file name; None if it has none."""
    with understood(address):
        filesystem, path = _opened(address)
        checksum_of = {}
        for item in filesystem.ls(path, detail=True):
            if item["name"].endswith(MODEL_FILES):
                checksum = next((f"{key} {item[key]}" for key in REMOTE_CHECKSUMS if item.get(key)), None)
                checksum_of[item["name"].rsplit("/", 1)[-1]] = checksum
        return checksum_of


def read_json(name: Path | str) -> Any:
    """Read a JSON file. Raises InputError if the file cannot be read or is not JSON."""
    if not is_address(name):
        return files.read_json(Path(name))
    try:
        return json.loads(read_bytes(str(name)))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{name}: not JSON ({error})") from None


def write_json(name: Path | str, value: Any) -> None:
    """Write a JSON file, completely or not at all. Raises InputError if it cannot be written."""
    if not is_address(name):
        files.write_json(Path(name), value)
        return
    with understood(name):
        filesystem, path = _opened(name)
        filesystem.pipe_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def remove(name: Path | str) -> None:
    """Remove a file. Raises InputError if it cannot be removed."""
    if not is_address(name):
        files.remove(Path(name))
        return
    with understood(name):
        filesystem, path = _opened(name)
        filesystem.rm_file(path)


def fetch_model(address: str, folder: Path, *, progress: bool) -> None:
    """Copy the Hugging Face model directory at an address to `folder`, completely or not at all.

    Does nothing if `folder` exists. If several processes call it at once, one copies and the others wait. Raises InputError
    if the directory does not exist or cannot be read.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")), understood(address):
        if folder.is_dir():
            return
        filesystem, path = _opened(address)
        model_files = [item for item in filesystem.ls(path, detail=True) if item["name"].endswith(MODEL_FILES)]
        bar = tqdm(
            total=sum(item["size"] for item in model_files),
            desc="model",
            unit="B",
            unit_scale=True,
            disable=not progress,
        )
        with files.replacing(folder) as temporary, bar:
            temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
            names = [item["name"] for item in model_files]
            targets = [str(temporary / name.rsplit("/", 1)[-1]) for name in names]
            filesystem.get(names, targets, callback=_Files(bar))


def _opened(address: Path | str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Listings are not cached, since other processes write too."""
    return fsspec.core.url_to_fs(str(address), use_listings_cache=False)


class _Files(Callback):
    """Moves a progress bar by the bytes of each file while several files are copied."""

    def __init__(self, bar: Any):
        super().__init__()
        self._bar = bar

    def branched(self, path_1: Any, path_2: Any, **kwargs: Any) -> Callback:
        """The callback for the copy of one file."""
        return _Bytes(self._bar)


class _Bytes(Callback):
    def __init__(self, bar: Any):
        super().__init__()
        self._bar = bar

    def relative_update(self, inc: int = 1) -> None:
        """Move the bar by `inc` bytes."""
        self._bar.update(inc)
