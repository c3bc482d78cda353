"""Reads the codebook of the stroke registry. It consists of blocks: a title row, a header row, and one row for each field."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.cohorts.stroke.coding import TABLES, Coding, parse_coding
from shared.cohorts.tables import plain_name, read_rows
from shared.errors import InputError

DEFINITION, NAME, CHARACTER, CODING, ROW_NAME = "필드정의", "SNUBH field name", "field character", "coding", "Row Name"
DATED = "날짜/시간"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: its name in the data, its display name, its code table (None: no codes), and whether it holds dates."""

    name: str
    display_name: str
    coding: Coding | None
    dated: bool


def read_metadata(path: Path) -> list[Field]:
    """Read the fields that have a row name, in order. Raises InputError if a block has no header, or a name occurs twice."""
    fields: list[Field] = []
    titles: set[str] = set()
    header: list[str] | None = None
    title, skipped = "", True
    for number, row in enumerate(read_rows(path), start=1):
        filled = [cell for cell in row if cell != ""]
        if not filled:
            header, title, skipped = None, "", True
        elif len(filled) == 1 and row[0] != "":
            title, header, skipped = str(row[0]), None, str(row[0]) in titles  # a footnote looks like a title too
        elif header is None and title:
            header = [plain_name(cell) for cell in row]
            titles.add(title)
            absent = [name for name in (DEFINITION, NAME, CHARACTER, CODING, ROW_NAME) if name not in header]
            if absent and not skipped:
                raise InputError(
                    f"{path}: row {number} should be the header of {title!r}; it lacks {', '.join(absent)}"
                )
        elif header is None:
            raise InputError(f"{path}: row {number} stands in no block; a block begins with a row of its title alone")
        elif not skipped:
            field = _field(dict(zip(header, row, strict=False)))
            if field is not None:
                fields.append(field)
    if not fields:
        raise InputError(f"{path}: no field with a row name; a block is a title row, a header row, and field rows")
    _require_unique(path, [field.name for field in fields])
    return fields


def _field(row: dict[str, Any]) -> Field | None:
    shown = str(row.get(ROW_NAME, "")).strip()
    if not shown:
        return None
    name = plain_name(row[NAME])
    name = TABLES["names_by_definition"].get(str(row[DEFINITION]).strip(), TABLES["names"].get(name, name))
    return Field(plain_name(name).lower(), shown, parse_coding(row.get(CODING)), str(row[CHARACTER]).strip() == DATED)


def _require_unique(path: Path, names: Sequence[str]) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"{path}: these fields occur twice: {', '.join(duplicates)}")
