"""Consult notes: the part of a note that a model is given, and what it is asked for (spec: registry, f).

The original had a language model translate a hospital's notes, list the names in them and copy the line that the specialist's
recommendation begins with. Notes come here translated and without names, the line in a column of its own. Mended: a note whose
line is not found is left out and counted, and the model's turn stays open for its reasoning.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from shared.cohorts.tables import id_text, is_single, lower_names, read_table
from shared.errors import InputError

INSTRUCTION = (
    "Below is a consultation about a patient with an infection. Recommend antibiotic treatment and explain your reasoning in "
    "detail. Keep to antimicrobial stewardship: the narrowest treatment that is safe, for no longer than needed. The "
    "sensitivity results are some of those that were made, and they do not bind you."
)
COLUMNS = ("id", "note", "header")


@dataclasses.dataclass(frozen=True)
class Note:
    """A note up to the specialist's recommendation, and the recommendation itself ("" where the note has none)."""

    id: str
    shown: str
    recommendation: str

    @property
    def message(self) -> str:
        """What a model is asked."""
        return f"{INSTRUCTION}\n\n{self.shown}"


def read_notes(path: Path) -> tuple[list[Note], int]:
    """Notes from a table (CSV, Parquet or workbook) with columns id, note and, where there is a recommendation in the note,
    `header`, the line that it begins with, in either case; and how many were left out because their line was not found.

    Raises InputError naming a missing column or a wrong row, never with what it holds.
    """
    table = read_table(path)
    columns = lower_names(table)  # a column Header that is not read would show the model what it is asked for
    missing = [name for name in COLUMNS[:2] if name not in columns]
    if missing:
        raise InputError(f"{path}: these columns are missing: {', '.join(missing)}")
    headers = columns.get(COLUMNS[2], [""] * table.rows)
    notes: list[Note] = []
    left_out, seen = 0, set()
    rows = zip(columns["id"], columns["note"], headers, strict=True)
    for row, (cell, note, header) in enumerate(rows):
        single = all(map(is_single, (cell, note, header)))
        identifier = id_text(cell) if single else ""
        if identifier == "" or identifier in seen or not str(note).strip():
            raise InputError(f"{path}, row {table.number(row)}: needs an id of its own and a note")
        seen.add(identifier)
        parts = cut(str(note), str(header).strip())
        if parts is None:
            left_out += 1
        else:
            notes.append(Note(identifier, *parts))
    if not notes:
        raise InputError(f"{path}: no note is left; {left_out} do not hold the line in their column header")
    return notes, left_out


def cut(note: str, header: str) -> tuple[str, str] | None:
    """A note before and from its recommendation; all of it without a header. None where the header is not found.

    The header is looked for as it is, then without asterisks. Of two places the second counts, as the first is an outline's;
    of more, none does.
    """
    if not header:
        return note.strip(), ""
    for line in (header, header.replace("*", "").strip()):
        count = note.count(line) if line else 0
        if 0 < count <= 2:
            place = note.rindex(line)
            return note[:place].strip(), note[place:].strip()
    return None
