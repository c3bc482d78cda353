"""What raters see and what they said, in one SQLite file of a review's folder. No model is named in it.

A rating is on the disk before `save` returns: SQLite's write-ahead log, synchronised at every commit, so that neither a
killed process nor a loss of power takes it away. The folder must lie on a local disk: such a log needs shared memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import InputError

STORE_FILE = "review.sqlite"
BETTER = ("1", "2", "equal")
GRADES = ("1", "2", "3", "4", "5")  # 5 is best
ALLOWED = {"better": ("", *BETTER), "grade_1": ("", *GRADES), "grade_2": ("", *GRADES)}
FIELDS = (*ALLOWED, "comment")
MAX_COMMENT = 5_000  # characters
# What XML, and so a workbook, cannot hold, and halves of characters.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
FORMAT = 1  # of the file, as its user_version

SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA user_version = {FORMAT};
CREATE TABLE review (id TEXT NOT NULL);
CREATE TABLE raters (rater TEXT PRIMARY KEY, token TEXT NOT NULL UNIQUE);
CREATE TABLE cases (
  rater TEXT NOT NULL REFERENCES raters, number INTEGER NOT NULL, question TEXT NOT NULL, reference TEXT NOT NULL,
  answer_1 TEXT NOT NULL, answer_2 TEXT NOT NULL, PRIMARY KEY (rater, number)
);
CREATE TABLE ratings (
  rater TEXT NOT NULL, number INTEGER NOT NULL, better TEXT NOT NULL DEFAULT '', grade_1 TEXT NOT NULL DEFAULT '',
  grade_2 TEXT NOT NULL DEFAULT '', comment TEXT NOT NULL DEFAULT '', PRIMARY KEY (rater, number),
  FOREIGN KEY (rater, number) REFERENCES cases (rater, number)
);
"""
SAVING = {
    field: f"INSERT INTO ratings (rater, number, {field}) VALUES (?, ?, ?) "
    f"ON CONFLICT DO UPDATE SET {field} = excluded.{field} WHERE {field} <> excluded.{field}"
    for field in FIELDS
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a rater sees of a case: the question, the reference answer ("" where there is none), answers 1 and 2."""

    question: str
    reference: str
    answer_1: str
    answer_2: str


@dataclasses.dataclass(frozen=True)
class Said:
    """What a rater said of a case, in the words of the sheet; "" where nothing was said."""

    better: str = ""
    grade_1: str = ""
    grade_2: str = ""
    comment: str = ""


def problem(field: object, value: object) -> str | None:
    """What is wrong with a value that should be saved as `field`, in one line; None where it may be saved."""
    if not isinstance(field, str) or field not in FIELDS:
        return f"field must be one of {', '.join(FIELDS)}"
    if not isinstance(value, str):
        return f"{field} must be a text"
    if field in ALLOWED:
        return None if value in ALLOWED[field] else f"{field} must be empty or one of {', '.join(ALLOWED[field][1:])}"
    if len(value) > MAX_COMMENT:
        return f"the comment has {len(value):,} characters, {MAX_COMMENT:,} at most can be kept"
    return "the comment has a character that cannot be kept" if UNWRITABLE.search(value) else None


def create(path: Path, review: str, cases: Mapping[str, Sequence[Case]]) -> None:
    """Write a new file with each rater's cases, in order; `review` is the id that the key has too.

    Every rater gets a token that nobody can guess. Raises OSError or sqlite3.Error where it cannot be written.
    """
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        with connection:
            connection.execute("INSERT INTO review VALUES (?)", (review,))
            for rater, shown in cases.items():
                connection.execute("INSERT INTO raters VALUES (?, ?)", (rater, secrets.token_urlsafe(32)))
                rows = [(rater, number, *dataclasses.astuple(case)) for number, case in enumerate(shown, start=1)]
                connection.executemany("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?)", rows)


class Store:
    """An open file of a review. Its methods may be called from several threads.

    All raise sqlite3.Error where the file can no longer be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Open it. Raises InputError where it is not there, or is something else."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; a review's folder is what --out named when its cases were written")
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version != FORMAT:
                raise InputError(
                    f"{path}: is of format {version}, this program reads {FORMAT}; not a review, or a newer one"
                )
            self.review: str = self._connection.execute("SELECT id FROM review").fetchone()[0]
            rows = self._connection.execute(
                "SELECT rater, token, count(number) FROM raters LEFT JOIN cases USING (rater) GROUP BY rater "
                "ORDER BY raters.rowid"
            ).fetchall()
        except (sqlite3.Error, TypeError) as error:
            raise InputError(f"{path}: cannot be opened as a review ({error})") from None
        self.tokens: dict[str, str] = {rater: token for rater, token, _ in rows}
        self.counts: dict[str, int] = {rater: count for rater, _, count in rows}

    def close(self) -> None:
        """Close the file; what was saved stays."""
        with self._lock:
            self._connection.close()

    def rater_of(self, token: str) -> str | None:
        """Whose token this is; the time that it takes does not tell how much of it is right."""
        given = token.encode("utf-8", "replace")
        found = [rater for rater, known in self.tokens.items() if secrets.compare_digest(known.encode(), given)]
        return found[0] if found else None

    def case(self, rater: str, number: int) -> Case:
        """A case, from 1 to `counts[rater]`. Raises KeyError where the rater has no such case."""
        with self._alone() as connection:
            row = connection.execute(
                "SELECT question, reference, answer_1, answer_2 FROM cases WHERE rater = ? AND number = ?",
                (rater, number),
            ).fetchone()
        if row is None:
            raise KeyError(f"{rater} has no case {number}")
        return Case(*row)

    def said(self, rater: str) -> dict[int, Said]:
        """What a rater said so far, by the number of the case."""
        with self._alone() as connection:
            rows = connection.execute(
                "SELECT number, better, grade_1, grade_2, comment FROM ratings WHERE rater = ? ORDER BY number",
                (rater,),
            ).fetchall()
        return {number: Said(*fields) for number, *fields in rows}

    def save(self, rater: str, number: int, field: str, value: str) -> tuple[Said, int]:
        """Keep a value; returns what is now kept of the case, and how many cases have a preference.

        When this returns, it is on the disk. Raises ValueError for a value that `problem` refuses, KeyError where the
        rater has no such case.
        """
        wrong = problem(field, value)
        if wrong:
            raise ValueError(wrong)
        if not 1 <= number <= self.counts.get(rater, 0):
            raise KeyError(f"{rater} has no case {number}")
        with self._alone() as connection:
            with connection:  # one transaction, on the disk at its end
                connection.execute(SAVING[field], (rater, number, value))
            row = connection.execute(
                "SELECT better, grade_1, grade_2, comment FROM ratings WHERE rater = ? AND number = ?", (rater, number)
            ).fetchone()
            rated = connection.execute(
                "SELECT count(*) FROM ratings WHERE rater = ? AND better <> ''", (rater,)
            ).fetchone()[0]
        return Said(*row), rated

    @contextlib.contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection
