"""Patients who withdrew: a list of their ids, whose rows are left out before anything else is looked at."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shared.cohorts import tables
from shared.cohorts.custom.table import read_data
from shared.cohorts.tables import RawTable, id_text, is_single, plain_name
from shared.errors import InputError

DIGEST_SIZE = 16  # bytes
NAMED = 10  # rows that a note names


def without(table: RawTable, column: str, listed: Path) -> tuple[RawTable, int, list[str]]:
    """The table without the patients whose ids, in `column`, a file lists; how many that are, and notes. Ids are never shown.

    Raises InputError where the list names no id, has no column of the same name, or holds an id that is one of the table's
    but for how it is written.
    """
    _check_there(listed)
    ids = read_data(listed)
    if plain_name(column) not in ids.columns:
        found = ", ".join(ids.columns)
        raise InputError(
            f"{listed}: its first row must name the column of ids as the table does, {column}; it has {found[:60]}"
        )
    cells = ids.columns[plain_name(column)]
    for row, cell in enumerate(cells):
        problem = tables.id_problem(cell, workbook=tables.is_workbook(listed))
        if problem:
            raise InputError(f"{listed}: row {ids.number(row)}: {problem}")
    wanted = {text: ids.number(row) for row, cell in reversed(list(enumerate(cells))) if (text := id_text(cell))}
    if not wanted:
        raise InputError(f"{listed}: lists no id; leave --exclude out")
    there = [id_text(cell) if is_single(cell) else "" for cell in table.columns[column]]
    known = set(there)
    absent = {text: row for text, row in wanted.items() if text not in known}
    _check_spelling(listed, absent, there)
    if len(absent) == len(wanted):
        raise InputError(
            f"{listed}: none of its {len(wanted):,} ids is in column {column} of {table.path}; is it the right list?"
        )
    kept = [row for row, text in enumerate(there) if text not in wanted]
    notes = [f"{len(there) - len(kept):,} of {len(there):,} patients are left out, as {listed.name} asks"]
    if absent:
        rows = ", ".join(map(str, sorted(absent.values())[:NAMED])) + (" ..." if len(absent) > NAMED else "")
        notes.append(f"{len(absent):,} of {len(wanted):,} ids in {listed.name} are not in the table (its rows {rows})")
    return table.only(kept), len(there) - len(kept), notes


def keyed_digest(listed: Path, salt: str) -> str:
    """A digest of the list, in hexadecimal, that cannot be compared with those of guessed lists without the salt.

    Raises InputError where there is no such file.
    """
    _check_there(listed)
    key = hashlib.blake2b(salt.encode()).digest()
    return hashlib.blake2b(listed.read_bytes(), key=key, digest_size=DIGEST_SIZE).hexdigest()


def _check_there(listed: Path) -> None:
    if not listed.is_file():
        raise InputError(f"{listed}: no such file; it should hold the ids of patients to leave out (--exclude)")


def _check_spelling(listed: Path, absent: dict[str, int], there: list[str]) -> None:
    loose = {_loose(text): text for text in there if text}
    for text, row in absent.items():
        if _loose(text) in loose:
            raise InputError(f"{listed}: row {row}: this id is not in the table, but one is that differs only in upper and lower "
                             f"case, blanks, or zeros in front; write it as the table does")  # fmt: skip


def _loose(text: str) -> str:
    plain = "".join(text.casefold().split())
    return plain.lstrip("0") or "0" if plain.isdigit() else plain
