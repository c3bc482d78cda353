"""What a run was begun with: digests of its questions, its raw files and its policy, in `inputs.json`.

Another file under the same name would change a run in its middle without a word. So every file that is read is hashed whole
(SHA-256, as `sha256sum` and model hubs have it; several files at once) when the run begins and when it goes on, and a
difference is refused. An object in a bucket that still has the checksum that its bucket gave at first is not read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from shared.backend import Backend
from shared.cohorts import tables
from shared.cohorts.catalogue import COHORTS
from shared.errors import InputError
from shared.policy import weight_files
from shared.preparation.section import DataConfig
from shared.storage import buckets, files

INPUTS_FILE = "inputs.json"
FORMAT = 1
CHUNK_BYTES = 2**22
THREADS = 8
SHOWN_BYTES = 2**30  # so many bytes are hashed under a progress bar
WHOLE_BYTES = 2**26  # files of which `outline` reads everything; of larger ones so many blocks
BLOCKS, BLOCK_BYTES = 256, 2**16

MARK = "remote"  # what a bucket says of an object's content

Digests = dict[str, dict[str, Any]]  # name of a file -> its `sha256` and `bytes`
Marks = Mapping[str, str | None]


def of_files(named: Mapping[str, Path | str], *, progress: bool | None = False) -> Digests:
    """Digests of files and of objects in buckets, by the names given. Raises InputError for one that cannot be read.

    `progress`: show a bar where they are large; None: on a terminal.
    """
    sizes = {name: buckets.size(place) for name, place in named.items()}
    total = sum(sizes.values())
    hidden = True if total < SHOWN_BYTES else None if progress is None else not progress
    with (
        tqdm(total=total, desc="digests", unit="B", unit_scale=True, disable=hidden) as bar,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):

        def one(name: str) -> dict[str, Any]:
            place = named[name]
            with buckets.understood(place), buckets.reading(place) as stream:
                return {"sha256": _sha256(stream, bar), "bytes": sizes[name]}

        return dict(zip(named, pool.map(one, named), strict=True))


def of_model(folder: Path, *, progress: bool | None = False) -> Digests:
    """Digests of everything that is read of a model directory: configuration, tokenizer, chat template, weights."""
    return of_files({path.name: path for path in _model_files(folder)}, progress=progress)


def outline(folder: Path) -> bytes:
    """A digest of a model directory that is quick: sizes, small files whole, and blocks spread over the large ones.

    For processes to see that they have the same model; `of_model` is for what must not escape.
    """
    digest = hashlib.sha256()
    for path in _model_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            if size <= WHOLE_BYTES:
                digest.update(stream.read())
                continue
            for block in range(BLOCKS):
                stream.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.digest()


def hold_data(data: DataConfig, noted: Inputs) -> None:
    """Note what the questions of a run come from, or see that it is the same. Raises InputError where it is not."""
    for name, place, found in _of_data(data):
        noted.hold(name, place, found)


def check_data(data: DataConfig, noted: Inputs) -> None:
    """See that the questions of a run come from what is noted, if anything is. Raises InputError where they do not."""
    for name, place, found in _of_data(data):
        noted.check(name, place, found)


def _of_data(data: DataConfig) -> Iterator[tuple[str, str, Digests]]:
    """What the questions of a run come from: the field that names it, where it is, and its digests."""
    for name, place in (("data.train", data.train), ("data.valid", data.valid)):
        if place:
            yield name, place, of_files({place.rsplit("/", 1)[-1]: place})
    if data.source and not data.train:
        found = COHORTS[data.cohort].digests(Path(data.source))
        yield "data.source", data.source, {name: {"blake2b": digest} for name, digest in found.items()}
    if data.exclude:
        listed = Path(data.exclude)
        yield "data.exclude", data.exclude, {listed.name: {"blake2b": tables.digest(listed)}}


def check_alike(backend: Backend, policy: Path, questions: Sequence[Path | str]) -> None:
    """Raise InputError where the processes of a run do not see the same files, each on its own host."""
    if backend.processes == 1:
        return
    digests = of_files({str(place): place for place in questions})
    content = " ".join(digest["sha256"] for digest in digests.values()).encode()
    for what, digest in ((", ".join(map(str, questions)), content), (str(policy), outline(policy))):
        if not backend.same(hashlib.sha256(digest).digest()):
            raise InputError(f"{what}: not the same for all processes of the run; give each host the same files")


class Inputs:
    """The digests noted in a run's work directory, and beside its checkpoints where they are elsewhere."""

    def __init__(self, workdir: Path, *others: Path | str, begun: bool = False):
        """`begun`: the run has been started before. Raises InputError where what is noted is of another version."""
        self._workdir, self._others = workdir, others
        self._noted: dict[Path | str, dict[str, Digests]] = {}
        for folder in (workdir, *others):
            place = buckets.join(folder, INPUTS_FILE)
            if buckets.is_file(place):
                self._noted[folder] = _read(place)
        if begun and not self._noted:
            tqdm.write(
                f"{workdir}: this run was begun by a version that noted no digests of its inputs; those of its inputs as they "
                "are now are noted"
            )

    def noted(self, name: str) -> Digests:
        """What is noted of the input `name`; nothing where it is not."""
        return next((held[name] for held in self._noted.values() if name in held), {})

    def hold(self, name: str, base: Path | str, found: Digests, *, own: bool = False) -> None:
        """Note the digests of the input `name`, whose files are in `base` (or which is the file `base`).

        `own`: the run made them in its work directory, and could make them again. Raises InputError, naming the file, where
        others are noted.
        """
        self.check(name, base, found)
        for folder in (self._workdir, *(() if own else self._others)):
            held = self._noted.setdefault(folder, {})
            if held.get(name) != found:
                held[name] = found
                buckets.write_json(buckets.join(folder, INPUTS_FILE), {"format": FORMAT, "inputs": held})

    def hold_copy(self, name: str, address: str, folder: Path, found: Digests, marks: Marks | None) -> None:
        """Like `hold`, for a model directory in a bucket: the copy in `folder` and what is at `address` must be unchanged.

        `marks` are the checksums that the bucket gave (`buckets.checksums`) before this start made the copy; None where an
        earlier start made it. An object at the address is read again only where the bucket's checksum is new. Where this start
        copied another model than the noted one, the copy is removed.
        """
        try:
            self.check(name, folder if marks is None else address, found)
        except InputError:
            if marks is not None:
                files.remove(folder)
            raise
        known = marks if marks is not None else {file: held.get(MARK) for file, held in self.noted(name).items()}
        listed = {
            file: mark
            for file, mark in buckets.checksums(address).items()
            if file in found or not file.endswith(".safetensors")
        }
        doubtful = [file for file, mark in listed.items() if mark is None or known.get(file) != mark]
        there = of_files({file: buckets.join(address, file) for file in doubtful})
        there |= {file: found[file] for file in listed if file in found and file not in there}
        _compare(self._workdir, address, found, there)
        self.hold(name, folder, {file: {**digest, MARK: listed[file]} for file, digest in found.items()})

    def check(self, name: str, base: Path | str, found: Digests) -> None:
        """Raise InputError, naming the file, where other digests are noted than `found`."""
        for folder, held in self._noted.items():
            if name in held:
                _compare(folder, base, held[name], found)


def _compare(folder: Path | str, base: Path | str, noted: Digests, found: Digests) -> None:
    for file in sorted({*noted, *found}):
        then, now = _content(noted.get(file)), _content(found.get(file))
        if then == now:
            continue
        place = buckets.join(base, file) if _is_folder_of(base, file) else base
        what = "it was not there" if then is None else "it is gone" if now is None else "its content differs"
        raise InputError(
            f"{place}: not what this run was begun with ({what}; {buckets.join(folder, INPUTS_FILE)}); put back what was there, "
            "or give another --workdir"
        )


def _is_folder_of(base: Path | str, file: str) -> bool:
    return str(base).rsplit("/", 1)[-1] != file


def _content(digest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is said of the file's content, and not of the place where it lies."""
    return None if digest is None else {name: value for name, value in digest.items() if name != MARK}


def _read(place: Path | str) -> dict[str, Digests]:
    found = buckets.read_json(place)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("inputs"), dict):
        raise InputError(f"{place}: not the digests of a run's inputs; remove it to have them noted as they are now")
    return found["inputs"]


def _model_files(folder: Path) -> Iterable[Path]:
    """What is read of a model directory, in order."""
    weights = weight_files.parts(folder)
    others = [path for path in folder.iterdir() if path.suffix in buckets.MODEL_FILES and path.suffix != ".safetensors"]
    return sorted({*weights, *others})


def _sha256(stream: BinaryIO, bar: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        bar.update(len(chunk))
    return digest.hexdigest()
