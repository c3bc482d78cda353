"""The cases and the ratings of a review, in one SQLite file. It does not contain the names of the models.

A rating is on the disk before `save` returns: SQLite's write-ahead log is synchronised at every commit, so neither a killed
process nor a power failure can lose it. The file must be on a local disk, because such a log needs shared memory.
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
# Characters that XML, and so a workbook, cannot hold, and single surrogates.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
FORMAT = 1  # the version of the file format, stored as SQLite's user_version

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
    """What a rater sees of a case: the question, the reference answer ("" if there is none), and the answers 1 and 2."""

    question: str
    reference: str
    answer_1: str
    answer_2: str


@dataclasses.dataclass(frozen=True)
class Said:
    """The rating of a case, in the words of the sheet; "" for what is not rated."""

    better: str = ""
    grade_1: str = ""
    grade_2: str = ""
    comment: str = ""


def problem(field: object, value: object) -> str | None:
    """What is wrong with a value that should be saved as `field`, in one line; None if it can be saved."""
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
    """Write a new file with the cases of each rater, in order. `review` is the id of the review, which the key has too.

    Each rater gets a secret token that cannot be guessed. Raises OSError or sqlite3.Error if the file cannot be written.
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
    """An open file of a review. Several threads may call its methods.

    All methods raise sqlite3.Error if the file can no longer be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at `path`. Raises InputError if it does not exist, or is something else."""
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
        """Close the file."""
        with self._lock:
            self._connection.close()

    def rater_of(self, token: str) -> str | None:
        """The rater with this token, or None. The comparison takes the same time however much of a token is right."""
        encoded = token.encode("utf-8", "replace")
        raters = [rater for rater, known in self.tokens.items() if secrets.compare_digest(known.encode(), encoded)]
        return raters[0] if raters else None

    def case(self, rater: str, number: int) -> Case:
        """A case of a rater; `number` is from 1 to `counts[rater]`. Raises KeyError if there is no such case."""
        with self._alone() as connection:
            row = connection.execute(
                "SELECT question, reference, answer_1, answer_2 FROM cases WHERE rater = ? AND number = ?",
                (rater, number),
            ).fetchone()
        if row is None:
            raise KeyError(f"{rater} has no case {number}")
        return Case(*row)

    def said(self, rater: str) -> dict[int, Said]:
        """The ratings of a rater so far, by number of the case."""
        with self._alone() as connection:
            rows = connection.execute(
                "SELECT number, better, grade_1, grade_2, comment FROM ratings WHERE rater = ? ORDER BY number",
                (rater,),
            ).fetchall()
        return {number: Said(*fields) for number, *fields in rows}

    def save(self, rater: str, number: int, field: str, value: str) -> tuple[Said, int]:
        """Save one value of a rating. Returns the whole rating of the case, and how many cases have a preference.

        The value is on the disk when this returns. Raises ValueError for a value that `problem` refuses, and KeyError if the
        rater has no such case.
        """
        reason = problem(field, value)
        if reason:
            raise ValueError(reason)
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
