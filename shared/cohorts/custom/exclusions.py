"""Leaves out patients who withdrew their consent: a file lists their ids, and their rows are removed first."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shared.cohorts import tables
from shared.cohorts.custom.table import read_data
from shared.cohorts.tables import RawTable, id_text, is_single, plain_name
from shared.errors import InputError

DIGEST_SIZE = 16  # bytes
NAMED = 10  # at most so many rows are named in a note


def without(table: RawTable, column: str, listed: Path) -> tuple[RawTable, int, list[str]]:
    """Remove the patients whose ids are in the file `listed`: the remaining table, the number of removed patients, and notes.

    `column` is the name of the id column in both files. Messages never show ids. Raises InputError if the list has no id or no
    such column, or if one of its ids differs from an id of the table only in spelling.
    """
    _check_there(listed)
    ids = read_data(listed)
    if plain_name(column) not in ids.columns:
        names = ", ".join(ids.columns)
        raise InputError(
            f"{listed}: its first row must name the column of ids as the table does, {column}; it has {names[:60]}"
        )
    cells = ids.columns[plain_name(column)]
    for row, cell in enumerate(cells):
        problem = tables.id_problem(cell, workbook=tables.is_workbook(listed))
        if problem:
            raise InputError(f"{listed}: row {ids.number(row)}: {problem}")
    row_of_listed_id = {
        text: ids.number(row) for row, cell in reversed(list(enumerate(cells))) if (text := id_text(cell))
    }
    if not row_of_listed_id:
        raise InputError(f"{listed}: lists no id; leave --exclude out")
    ids_of_table = [id_text(cell) if is_single(cell) else "" for cell in table.columns[column]]
    distinct_ids = set(ids_of_table)
    absent = {text: row for text, row in row_of_listed_id.items() if text not in distinct_ids}
    _check_spelling(listed, absent, ids_of_table)
    if len(absent) == len(row_of_listed_id):
        raise InputError(
            f"{listed}: none of its {len(row_of_listed_id):,} ids is in column {column} of {table.path}; is it the right list?"
        )
    remaining = [row for row, text in enumerate(ids_of_table) if text not in row_of_listed_id]
    notes = [
        f"{len(ids_of_table) - len(remaining):,} of {len(ids_of_table):,} patients are left out, as {listed.name} asks"
    ]
    if absent:
        rows = ", ".join(map(str, sorted(absent.values())[:NAMED])) + (" ..." if len(absent) > NAMED else "")
        notes.append(
            f"{len(absent):,} of {len(row_of_listed_id):,} ids in {listed.name} are not in the table (its rows {rows})"
        )
    return table.only(remaining), len(ids_of_table) - len(remaining), notes


def keyed_digest(listed: Path, salt: str) -> str:
    """A keyed digest of the list, in hexadecimal. Without the salt nobody can test whether a guessed list has the same digest.

    Raises InputError if the file does not exist.
    """
    _check_there(listed)
    key = hashlib.blake2b(salt.encode()).digest()
    return hashlib.blake2b(listed.read_bytes(), key=key, digest_size=DIGEST_SIZE).hexdigest()


def _check_there(listed: Path) -> None:
    if not listed.is_file():
        raise InputError(f"{listed}: no such file; it should hold the ids of patients to leave out (--exclude)")


def _check_spelling(listed: Path, absent: dict[str, int], ids_of_table: list[str]) -> None:
    simplified = {_simplified(text) for text in ids_of_table if text}
    for text, row in absent.items():
        if _simplified(text) in simplified:
            raise InputError(f"{listed}: row {row}: this id is not in the table, but one is that differs only in upper and lower "
                             f"case, blanks, or zeros in front; write it as the table does")  # fmt: skip


def _simplified(text: str) -> str:
    """An id in lower case, without blanks and zeros at its beginning."""
    plain = "".join(text.casefold().split())
    return plain.lstrip("0") or "0" if plain.isdigit() else plain
