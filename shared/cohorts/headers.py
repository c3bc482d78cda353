"""Detects tables whose first row does not name every column: a title above the names, or a header of two rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from shared.errors import InputError
from shared.registry.features import as_number

LOOKED_AT = 200  # rows below the second, from which the kind of a column is found
ENOUGH = 3  # rows with a cell that are needed to say what a column holds
MISSING_MARKS = ("na", "n/a", "nan", "null", "none", ".", "-", "?", "unknown", "missing")

_VALUE = re.compile(r"[<>≤≥~=]|\d+[-./:]\d")  # the beginning of a value such as <0.3, or of a date
_WORD = re.compile(r"[^\W\d_]|[(\[]")  # the beginning of a name, but not of a value such as <0.3


def check_header(where: str, rows: Sequence[Sequence[Any]]) -> None:
    """Raise InputError if there is a title above the column names, or a second row of names, labels or units below them."""
    if len(rows) < 2:
        return
    first, second = rows[0], rows[1]
    named = [place for place, cell in enumerate(first) if cell != ""]
    below = [cell for cell in second if cell != ""]
    if len(below) < 2 or not named:
        return
    if len(named) == 1 and all(map(_is_name, below)) and len(below) > 2:
        raise InputError(f"{where}: row 1 has one cell only, as a title has, and row 2 reads like names; one row must name every "
                         f"column: delete the rows above it")  # fmt: skip
    unnamed = [place for place, cell in enumerate(second) if cell != "" and place not in named]
    if unnamed and unnamed != [0] and all(map(_is_name, below)):
        raise InputError(f"{where}: a header of two rows: row 1 names {len(named)} of {len(second)} columns and row 2 reads like "
                         f"names; one row must name every column: join the two into one")  # fmt: skip
    numeric = [place for place in named if _is_numeric(rows, place)]
    cells = [second[place] for place in numeric if place < len(second) and second[place] != ""]
    if len(cells) > 1 and 2 * len(cells) > len(numeric) and all(map(_is_text, below)) and any(map(_is_name, cells)):
        raise InputError(f"{where}: a header of two rows: row 2 holds texts in {len(cells)} columns that hold numbers below it, "
                         f"as a second row of names or units does; one row must name every column: delete row 2")  # fmt: skip


def _is_name(cell: Any) -> bool:
    text = str(cell).strip()
    return isinstance(cell, str) and bool(_WORD.match(text))


def _is_text(cell: Any) -> bool:
    """Whether a cell may be a name, a label or a unit, and not a number, a date, a value such as <0.3, or a missing mark."""
    text = str(cell).strip()
    return (
        isinstance(cell, str)
        and as_number(text) != as_number(text)
        and not _VALUE.match(text)
        and text.lower() not in MISSING_MARKS
    )


def _is_numeric(rows: Sequence[Sequence[Any]], place: int) -> bool:
    below = [row[place] for row in rows[2 : 2 + LOOKED_AT] if place < len(row) and row[place] != ""]
    return len(below) >= ENOUGH and all(
        not isinstance(cell, bool) and as_number(cell) == as_number(cell) for cell in below
    )
