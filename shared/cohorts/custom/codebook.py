"""The codebook of a custom registry: one line for each column of its table."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.cohorts.custom.table import WORKBOOKS, read_data
from shared.cohorts.tables import RawTable, is_utf8, plain_name, suffix
from shared.errors import InputError
from shared.storage import files

CODEBOOK = "codebook.csv"
COLUMNS = ("column", "display_name", "section", "kind", "unit", "coding", "leak_group", "role", "look_at")
OPTIONAL = ("unit", "coding", "leak_group", "role", "look_at")
KINDS = ("id", "number", "category", "ordinal", "datetime", "text", "ignore")
ROLES = ("", "site", "time", "sex", "age")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a codebook: what it says of one column.

    `coding` maps codes, as texts, to labels; an empty label means that the value is missing. A column with the role `site` is
    never shown. `look_at` is a remark that asks a person to check a drafted line; the program does not use it.
    """

    column: str
    display_name: str
    section: str
    kind: str
    unit: str = ""
    coding: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leak_group: str = ""
    role: str = ""
    look_at: str = ""

    @property
    def labels(self) -> list[str]:
        """The distinct labels of the codes, in order, without the empty one."""
        return [label for label in dict.fromkeys(self.coding.values()) if label]

    @property
    def visible(self) -> bool:
        """Whether the column may be shown in a record."""
        return self.role != "site"


def codebook_table(path: Path, *, encoding: str = "") -> RawTable:
    """The cells of a codebook, which is a workbook or a text file in UTF-8 or in `encoding`.

    Raises InputError if the file cannot be read.
    """
    of_codebook = encoding if suffix(path) not in WORKBOOKS and not is_utf8(path) else ""
    return read_data(path, encoding=of_codebook, decimal=".")


def read_codebook(path: Path, labels: Mapping[str, str] | None = None, *, encoding: str = "") -> list[Line]:
    """Read a codebook from a file; see `lines_of`. Raises InputError if it cannot be read or is wrong."""
    return lines_of(codebook_table(path, encoding=encoding), labels)


def lines_of(table: RawTable, labels: Mapping[str, str] | None = None) -> list[Line]:
    """The lines of a codebook. `labels` gives display names for columns that have none in the codebook.

    Raises InputError that names the wrong line and column.
    """
    path = table.path
    missing = [name for name in COLUMNS if name not in table.columns and name not in OPTIONAL]
    if missing:
        raise InputError(f"{path}: these columns are missing: {', '.join(missing)}")
    unknown = [name for name in table.columns if name not in COLUMNS]
    if unknown:
        raise InputError(f"{path}: unknown columns {', '.join(unknown)}; known are {', '.join(COLUMNS)}")
    lines = [_line(path, number, table, labels or {}) for number in range(table.rows)]
    names = [line.column for line in lines]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"{path}: these columns have two lines: {', '.join(duplicates)}")
    if sum(line.kind == "id" for line in lines) != 1:
        count = sum(line.kind == "id" for line in lines)
        hint = "; where no column names patients, add one that numbers them" if not count else ""
        raise InputError(f"{path}: exactly one line must be of kind id, there are {count}{hint}")
    for role in ROLES[1:]:
        if sum(line.role == role for line in lines) > 1:
            raise InputError(f"{path}: two lines have the role {role}")
    return lines


def _plain(cell: Any) -> str:
    """A cell of a codebook as a text, even if a spreadsheet has turned it into a number."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _line(path: Path, number: int, table: RawTable, labels: Mapping[str, str]) -> Line:
    cells = {name: _plain(table.columns[name][number]) for name in table.columns}
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
    """A coding such as `0=No; 1=Yes; 9=` as a dictionary from code to label. Raises InputError if it has another form."""
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


def write_codebook(path: Path, lines: Sequence[Line]) -> None:
    """Write a codebook as CSV. Raises InputError if the file exists already; it is never replaced."""
    if path.exists():
        raise InputError(f"{path}: is there already; remove it to have a new draft")
    rows = [[(dataclasses.asdict(line) | {"coding": coding_text(line)})[name] for name in COLUMNS] for line in lines]
    # Excel recognises UTF-8 only if the file begins with a byte order mark.
    encoding = "utf-8" if all(cell.isascii() for row in rows for cell in row) else "utf-8-sig"
    with files.replacing(path) as temporary, temporary.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def coding_text(line: Line) -> str:
    """The coding of a line as the text of a codebook, such as `0=No; 1=Yes`. A semicolon within a label becomes a comma."""
    return "; ".join(f"{code}={label.replace(';', ',')}" for code, label in line.coding.items())
