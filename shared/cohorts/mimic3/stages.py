"""The stages of a long preparation. Each writes a file, and a note on its inputs, so that it is not repeated in vain."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
from tqdm import tqdm

from shared.storage import files

POLL_SECONDS = 0.2
Written = tuple[int, dict[str, Any]]  # the number of rows, and notes
Write = Callable[[Path, "tqdm[Any]"], Written]


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished stage: its file, the number of rows, the seconds that it took, and its notes."""

    name: str
    path: Path
    rows: int
    seconds: float
    notes: dict[str, Any]


class Stages:
    """Runs stages. `folder` holds the note of each stage, and its file unless another path is given."""

    def __init__(self, folder: Path, *, progress: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=files.OWNER_ONLY_FOLDER)
        self.folder = folder
        self.done: list[Done] = []
        self._progress = progress

    def kept(self, name: str, key: str, path: Path | None = None) -> Done | None:
        """The result of an earlier run of this stage, if it had the same inputs, which `key` identifies; else None."""
        path, note = path or self.path(name), self._note(name)
        if not note.is_file() or not path.is_file():
            return None
        record = files.read_json(note)
        if not isinstance(record, dict) or record.get("key") != key:
            return None
        return Done(name, path, record["rows"], record["seconds"], record["notes"])

    def run(
        self, name: str, key: str, write: Write, *, path: Path | None = None, total: int | None = None, unit: str = ""
    ) -> Done:
        """Run a stage, unless an earlier result with the same `key` exists: `write(path, bar)` returns rows and notes.

        `write` must leave `path` complete or absent. The note is written last, so that a stage that was interrupted is run
        again. `total` and `unit` are for the progress bar.
        """
        done = self.kept(name, key, path)
        if done is None:
            path = path or self.path(name)
            self._note(name).unlink(missing_ok=True)
            begin = time.perf_counter()
            with tqdm(total=total, desc=name, unit=unit, disable=not self._progress) as bar:
                rows, notes = write(path, bar)
                bar.set_postfix_str(f"{rows:,} rows")
            seconds = round(time.perf_counter() - begin, 3)
            files.write_json(self._note(name), {"key": key, "rows": rows, "seconds": seconds, "notes": notes})
            done = Done(name, path, rows, seconds, notes)
        self.done.append(done)
        return done

    def path(self, name: str) -> Path:
        """The path of the file of a stage."""
        return self.folder / f"{name}.parquet"

    def _note(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def key_of(*parts: Any) -> str:
    """A digest, in hexadecimal, of values that can be written as JSON."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet, atomically."""
    with files.replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


@contextlib.contextmanager
def watched(connection: duckdb.DuckDBPyConnection, bar: tqdm[Any]) -> Iterator[None]:
    """Show the progress of a query on `connection` in `bar`, in percent, while the block runs."""
    if bar.disable:
        yield
        return
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            bar.update(max(0.0, round(connection.query_progress()) - bar.n))

    connection.execute("SET enable_progress_bar = true")
    connection.execute("SET enable_progress_bar_print = false")
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        bar.update(100 - bar.n)
