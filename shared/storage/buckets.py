"""Files that may be in a bucket: `gs://`, `s3://` or whatever else fsspec knows, beside those that have a path.

A name with `://` in it is an address. What cannot be read or written there ends in one line that names the address and what
to do; the clients of buckets know many exceptions for it.
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

MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")  # what is read of a model; not its other formats
REMOTE_CHECKSUMS = (
    "md5Hash",
    "crc32c",
    "ETag",
    "etag",
    "content_md5",
)  # as Google's, Amazon's and Azure's file systems name them
# Errors of clients that are no OSError, each to be looked up only where its client is loaded.
CLIENT_ERRORS = (
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
)


def is_address(name: Path | str) -> bool:
    """Whether this names something in a bucket, and not a path."""
    return isinstance(name, str) and "://" in name


def failures() -> tuple[type[Exception], ...]:
    """What the clients in use raise where a bucket refuses, or does not answer."""
    clients = [getattr(sys.modules[module], name) for module, name in CLIENT_ERRORS if module in sys.modules]
    return OSError, ValueError, *clients


@contextlib.contextmanager
def understood(address: Path | str) -> Iterator[None]:
    """Turn what goes wrong with an address in this block into an InputError; a path is left alone."""
    if not is_address(address):
        yield
        return
    try:
        yield
    except ImportError as error:
        known = known_implementations.get(str(address).split("://")[0], {}).get("class", "fsspec")
        package = known.split(".")[0]
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
    """The file `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if isinstance(folder, str) and is_address(folder) else Path(folder) / name


def is_file(name: Path | str) -> bool:
    """Whether this file is there. Raises InputError where its bucket cannot be asked."""
    if not is_address(name):
        return Path(name).is_file()
    with understood(name):
        filesystem, path = _opened(name)
        with contextlib.suppress(FileNotFoundError):
            return filesystem.info(path)["type"] == "file"  # fsspec's isfile answers False to whatever goes wrong
    return False


def read_bytes(address: str) -> bytes:
    """The whole object at an address. Raises InputError where it cannot be had."""
    with understood(address):
        filesystem, path = _opened(address)
        return filesystem.cat_file(path)


@contextlib.contextmanager
def reading(name: Path | str) -> Iterator[BinaryIO]:
    """A file, or the object at an address, to be read from its beginning; wrap it in `understood`."""
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
    """Bytes of a file or of an object. Raises InputError where it is not there."""
    if not is_address(name):
        try:
            return Path(name).stat().st_size
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    with understood(name):
        filesystem, path = _opened(name)
        return filesystem.info(path)["size"]


def checksums(address: str) -> dict[str, str | None]:
    """What the bucket says of the content of each file of the model directory at an address; None where it says nothing."""
    with understood(address):
        filesystem, path = _opened(address)
        found = {}
        for item in filesystem.ls(path, detail=True):
            if item["name"].endswith(MODEL_FILES):
                mark = next((f"{key} {item[key]}" for key in REMOTE_CHECKSUMS if item.get(key)), None)
                found[item["name"].rsplit("/", 1)[-1]] = mark
        return found


def read_json(name: Path | str) -> Any:
    """Read JSON. Raises InputError where the file cannot be had, or is not JSON."""
    if not is_address(name):
        return files.read_json(Path(name))
    try:
        return json.loads(read_bytes(str(name)))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{name}: not JSON ({error})") from None


def write_json(name: Path | str, value: Any) -> None:
    """Write JSON; whole or not at all. Raises InputError where that is not allowed."""
    if not is_address(name):
        files.write_json(Path(name), value)
        return
    with understood(name):
        filesystem, path = _opened(name)
        filesystem.pipe_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def remove(name: Path | str) -> None:
    """Remove a file. Raises InputError where that is not allowed."""
    if not is_address(name):
        files.remove(Path(name))
        return
    with understood(name):
        filesystem, path = _opened(name)
        filesystem.rm_file(path)


def fetch_model(address: str, folder: Path, *, progress: bool) -> None:
    """Copy a Hugging Face model directory to `folder`, unless it is there; whole or not at all.

    Several processes may ask at once: one copies. Raises InputError where the directory is not there or cannot be read.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")), understood(address):
        if folder.is_dir():
            return
        filesystem, path = _opened(address)
        found = [item for item in filesystem.ls(path, detail=True) if item["name"].endswith(MODEL_FILES)]
        bar = tqdm(
            total=sum(item["size"] for item in found), desc="model", unit="B", unit_scale=True, disable=not progress
        )
        with files.replacing(folder) as temporary, bar:
            temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
            names = [item["name"] for item in found]
            targets = [str(temporary / name.rsplit("/", 1)[-1]) for name in names]
            filesystem.get(names, targets, callback=_Files(bar))


def _opened(address: Path | str) -> tuple[Any, str]:
    """The file system of an address, and the path there. No listing is remembered: other processes write too."""
    return fsspec.core.url_to_fs(str(address), use_listings_cache=False)


class _Files(Callback):
    """Of a copy of several files: the bytes of each move the bar."""

    def __init__(self, bar: Any):
        super().__init__()
        self._bar = bar

    def branched(self, path_1: Any, path_2: Any, **kwargs: Any) -> Callback:
        """The callback of one file."""
        return _Bytes(self._bar)


class _Bytes(Callback):
    def __init__(self, bar: Any):
        super().__init__()
        self._bar = bar

    def relative_update(self, inc: int = 1) -> None:
        """So many further bytes are here."""
        self._bar.update(inc)
