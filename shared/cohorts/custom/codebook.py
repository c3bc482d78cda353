"""The codebook of a custom registry: one line for each column of its table."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import files
from shared.cohorts.tables import RawTable, is_single, is_utf8, plain_name, read_table
from shared.errors import InputError
from shared.registry.features import as_number
from shared.registry.statistics import FEW_VALUES

CODEBOOK = "codebook.csv"
COLUMNS = ("column", "display_name", "section", "kind", "unit", "coding", "leak_group", "role")
OPTIONAL = ("unit", "coding", "leak_group", "role")
KINDS = ("id", "number", "category", "ordinal", "datetime", "text", "ignore")
ROLES = ("", "site", "time", "sex", "age")
FEW_CODES = 10  # a column of so few whole numbers is drafted as codes
FEW_MARKS = 3  # a column of numbers is drafted as such although so many other texts stand in it, such as <0.3
MISSING_MARKS = ("na", "n/a", "nan", "null", "none", ".", "-", "?", "unknown", "missing")
LONGEST_LABEL = 40  # characters: longer texts are remarks
PROSE_WORDS = 4  # and so are texts of which half have so many words
KEYS = frozenset("subject patient case record pid mrn serial index".split())  # of values that all differ
# Columns of these names are never shown by a draft, whatever they hold.
IDENTIFYING = frozenset(
    "name names surname firstname lastname initial initials phone telephone mobile fax email mail address street zip "
    "postcode ssn mrn passport insurance".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One column. `coding` maps codes, as texts, to labels; an empty label means missing. A site is never shown."""

    column: str
    display_name: str
    section: str
    kind: str
    unit: str = ""
    coding: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leak_group: str = ""
    role: str = ""

    @property
    def labels(self) -> list[str]:
        """The texts that the codes stand for, in their order."""
        return [label for label in dict.fromkeys(self.coding.values()) if label]

    @property
    def visible(self) -> bool:
        """Whether the column is part of a record."""
        return self.role != "site"


def read_codebook(path: Path, labels: Mapping[str, str] | None = None, *, encoding: str = "") -> list[Line]:
    """The lines of a codebook in UTF-8, else in `encoding`. `labels` are the display names of columns that it gives none.

    Raises InputError naming the line and the column that is wrong.
    """
    table = read_table(path, encoding=encoding if encoding and not is_utf8(path) else "")
    missing = [name for name in COLUMNS if name not in table.columns and name not in OPTIONAL]
    if missing:
        raise InputError(f"{path}: these columns are missing: {', '.join(missing)}")
    unknown = [name for name in table.columns if name not in COLUMNS]
    if unknown:
        raise InputError(f"{path}: unknown columns {', '.join(unknown)}; known are {', '.join(COLUMNS)}")
    lines = [_line(path, number, table, labels or {}) for number in range(table.rows)]
    names = [line.column for line in lines]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: these columns have two lines: {', '.join(twice)}")
    if sum(line.kind == "id" for line in lines) != 1:
        raise InputError(
            f"{path}: exactly one line must be of kind id, there are {sum(line.kind == 'id' for line in lines)}"
        )
    for role in ROLES[1:]:
        if sum(line.role == role for line in lines) > 1:
            raise InputError(f"{path}: two lines have the role {role}")
    return lines


def _line(path: Path, number: int, table: RawTable, labels: Mapping[str, str]) -> Line:
    cells = {name: str(table.columns[name][number]).strip() for name in table.columns}
    cells["column"] = plain_name(cells["column"])
    where = f"{path}, line {table.number(number)}"
    if not cells["column"]:
        raise InputError(f"{where}: the column's name is empty")
    if cells["kind"] not in KINDS:
        raise InputError(f"{where} ({cells['column']}): kind {cells['kind']!r} is not one of {', '.join(KINDS)}")
    if cells.get("role", "") not in ROLES:
        raise InputError(f"{where} ({cells['column']}): role {cells['role']!r} is not one of {', '.join(ROLES[1:])}")
    coding = _coding(cells.get("coding", ""), f"{where} ({cells['column']})")
    if cells["kind"] == "ordinal" and not coding:
        raise InputError(f"{where} ({cells['column']}): kind ordinal needs a coding in the order of its levels")
    if cells["kind"] == "datetime" and any(coding.values()):
        raise InputError(
            f"{where} ({cells['column']}): a date can have codes for missing only, each with nothing after its ="
        )
    shown = cells["display_name"] or labels.get(cells["column"]) or cells["column"]
    return Line(**{**cells, "coding": coding, "display_name": shown})  # type: ignore[arg-type]


def _coding(text: str, where: str) -> dict[str, str]:
    """`0=No; 1=Yes; 9=` as a table; without an empty label it is a text, with one it is missing."""
    coding: dict[str, str] = {}
    for part in (part.strip() for part in text.split(";")):
        if not part:
            continue
        code, mark, label = part.partition("=")
        if not mark or not code.strip():
            raise InputError(f"{where}: coding {part!r} is not of the form code=label, separated by semicolons")
        if code.strip() in coding:
            raise InputError(f"{where}: code {code.strip()} comes twice in its coding")
        coding[code.strip()] = label.strip()
    return coding


def draft(table: RawTable) -> list[Line]:
    """A first codebook for a table, to be edited: kinds from the values, names as the file has them, one section.

    What could name a patient is drafted as `ignore`, so that no prompt shows it unasked: free text, columns that are called
    names, initials, phone and such, and keys beside the id; and so are lists and structures.
    """
    single = {name: cells for name, cells in table.columns.items() if all(map(is_single, cells))}
    columns = {name: [cell for cell in cells if cell != ""] for name, cells in single.items()}
    unique = [name for name, present in columns.items() if _is_unique(present, table.rows)]
    keys = [name for name in unique if _is_key(name, columns[name])]
    codes = [name for name in unique if not _all_numbers(columns[name]) and not _has_blanks(columns[name])]
    own = next(iter([*keys, *(name for name in codes if not _is_identifying(name))]), None)
    lines = {name: _line_of(name, present, own, keys) for name, present in columns.items()}
    ignored = {name: Line(column=name, display_name=name, section="Record", kind="ignore") for name in table.columns}
    return [
        dataclasses.replace((ignored | lines)[name], display_name=table.labels.get(name) or name)
        for name in table.columns
    ]


def _line_of(name: str, present: Sequence[Any], own: str | None, keys: Sequence[str]) -> Line:
    if name == own:
        return Line(column=name, display_name=name, section="", kind="id")
    if name in keys or _is_identifying(name):
        return Line(column=name, display_name=name, section="Record", kind="ignore")
    return _drafted(name, present)


def _is_unique(present: Sequence[Any], rows: int) -> bool:
    numbers = [as_number(cell) for cell in present]
    fractions = any(number == number and not number.is_integer() for number in numbers)
    return bool(present) and not fractions and len({str(cell) for cell in present}) == rows


def _is_key(name: str, present: Sequence[Any]) -> bool:
    """Whether a column of values that all differ is called a key, or counts the rows."""
    if name.lower().endswith(("id", "no", "number", "key", "번호")) or not KEYS.isdisjoint(_words(name)):
        return True
    numbers = sorted(as_number(cell) for cell in present)
    return len(numbers) > 2 and all(second - first == 1 for first, second in itertools.pairwise(numbers))


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def _is_identifying(name: str) -> bool:
    return not IDENTIFYING.isdisjoint(_words(name))


def _is_prose(texts: Sequence[str]) -> bool:
    """Whether texts read like remarks, however often they repeat."""
    words = sorted(len(text.split()) for text in texts)
    return max(map(len, texts)) > LONGEST_LABEL or words[len(words) // 2] >= PROSE_WORDS


def _has_blanks(cells: Sequence[Any]) -> bool:
    return any(" " in str(cell).strip() for cell in cells)


def _all_numbers(cells: Sequence[Any]) -> bool:
    return all(not isinstance(cell, bool) and as_number(cell) == as_number(cell) for cell in cells)


def _drafted(name: str, present: Sequence[Any]) -> Line:
    texts = list(dict.fromkeys(_as_code(cell) for cell in present))
    marks = [text for text in texts if as_number(text) != as_number(text)]
    kind, coding = "ignore", {}  # free text: what nobody has read yet is not shown
    if not texts:
        kind = "ignore"
    elif all(hasattr(cell, "year") or _is_date(cell) for cell in present):
        kind = "datetime"
    elif _all_numbers(present):
        whole = all(float(as_number(cell)).is_integer() for cell in present)
        kind = "category" if whole and len(texts) <= FEW_CODES else "number"
        coding = {code: code for code in sorted(texts, key=float)} if kind == "category" else {}
    elif len(marks) <= FEW_MARKS and len(texts) - len(marks) > len(marks):
        kind, coding = "number", {mark: "" if mark.lower() in MISSING_MARKS else mark for mark in marks}
    elif len(texts) <= min(FEW_VALUES, len(present) // 2) and not _is_prose(texts):
        kind = "category"
    return Line(column=name, display_name=name, section="Record", kind=kind, coding=coding)


def _as_code(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _is_date(cell: Any) -> bool:
    text = str(cell).strip()
    return len(text) >= 10 and text[4:5] == "-" and text[7:8] == "-" and text[:4].isdigit()


def write_codebook(path: Path, lines: Sequence[Line]) -> None:
    """Write a codebook as CSV. Raises InputError rather than replace one that is there."""
    if path.exists():
        raise InputError(f"{path}: is there already; remove it to have a new draft")
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for line in lines:
            coding = "; ".join(f"{code}={label}" for code, label in line.coding.items())
            cells = dataclasses.asdict(line) | {"coding": coding}
            writer.writerow([cells[name] for name in COLUMNS])
