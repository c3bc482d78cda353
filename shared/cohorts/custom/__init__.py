"""Everybody else's registry: a table and a codebook (docs/custom.md).

The source folder holds one table, `data.csv` (or .csv.gz, .parquet, .xlsx, .dta, .sas7bdat, .xpt), and `codebook.csv`
with a line for each of its columns. Cells that do not fit their line are all listed, with row and column.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.cohorts import tables
from shared.cohorts.custom.codebook import CODEBOOK, Line, read_codebook
from shared.cohorts.custom.problems import Problem, Problems
from shared.cohorts.custom.table import DATA, read_data
from shared.cohorts.tables import RawTable
from shared.errors import InputError
from shared.registry.build import RawColumn, RawRegistry
from shared.registry.features import BEYOND, Kind, as_number, too_wide

FILES = {"data": DATA, "codebook": (CODEBOOK,)}
FIRST_YEAR, LAST_YEAR = 1700, 2250  # of dates; beyond them pandas cannot count, and such a date marks a missing one


def digests(source: Path) -> dict[str, str]:
    """Digest of each raw file in `source`, by its name."""
    return {path.name: tables.digest(path) for path in tables.find(source, FILES).values()}


def read(source: Path, *, cohort: str = "custom", encoding: str = "") -> RawRegistry:
    """Read the table and its codebook. `encoding` is that of the table's texts, where its format does not say it.

    Raises InputError where they name different columns, or a line of the codebook is wrong; Problems, with all of them,
    where cells do not fit their line.
    """
    found = tables.find(source, FILES)
    data = read_data(found["data"], encoding=encoding)
    lines = read_codebook(found["codebook"], data.labels, encoding=encoding)
    data = _with_row_numbers(data, lines)
    _same_columns(found["codebook"], lines, data)
    if not data.rows:
        raise InputError(f"{found['data']}: there is no row below the first")
    problems: list[Problem] = []
    used = [line for line in lines if line.kind not in ("id", "ignore")]
    columns = [_column(line, data, problems) for line in used]
    ids = _ids(next(line.column for line in lines if line.kind == "id"), data, problems)
    if problems:
        raise Problems(found["data"], sorted(problems))
    roles = {line.role: line.column for line in used if line.role}
    return RawRegistry(
        cohort=cohort,
        ids=ids,
        columns=columns,
        ordered={line.column: tuple(line.labels) for line in used if line.kind == "ordinal"},
        reference=roles.get("time")
        if any(c.name == roles.get("time") and c.kind == "datetime" for c in columns)
        else None,
        roles=roles,
        digests=digests(source),
        notes=data.notes,
    )


def _with_row_numbers(data: RawTable, lines: Sequence[Line]) -> RawTable:
    """The table with its column of row numbers, where the codebook describes that."""
    described = {line.column for line in lines}
    if not set(data.row_numbers) & described:
        return data
    return dataclasses.replace(data, columns={**data.row_numbers, **data.columns}, notes=data.notes[:-1])


def _same_columns(codebook: Path, lines: Sequence[Line], data: RawTable) -> None:
    names = list(data.columns)
    described = {line.column for line in lines}
    absent, unknown = sorted(described - set(names)), sorted(set(names) - described)
    if absent or unknown:
        raise InputError(
            f"{codebook} and {data.path} name different columns; only in the codebook: {', '.join(absent[:10]) or 'none'}; "
            f"only in the data: {', '.join(unknown[:10]) or 'none'} (a line of kind `ignore` leaves a column out)"
            + "".join(f"; {note}" for note in data.notes)
        )


def _ids(name: str, data: RawTable, problems: list[Problem]) -> list[str]:
    ids = [tables.id_text(cell) if tables.is_single(cell) else "" for cell in data.columns[name]]
    first: dict[str, int] = {}
    for place, (identifier, cell) in enumerate(zip(ids, data.columns[name], strict=True)):
        row = data.number(place)
        if not tables.is_single(cell):
            problems.append(Problem(row, name, "a list, a structure or bytes in place of an id"))
            continue
        problem = tables.id_problem(cell, workbook=data.path.suffix == ".xlsx")
        if identifier == "":
            problems.append(Problem(row, name, "no id"))
        elif problem:
            problems.append(Problem(row, name, problem))
        elif identifier in first:
            problems.append(Problem(row, name, f"the same id as row {first[identifier]}"))
        first.setdefault(identifier, row)
    return ids


def _column(line: Line, data: RawTable, problems: list[Problem]) -> RawColumn:
    read_cell = {"number": _number, "datetime": _datetime}.get(line.kind, _text)
    values = []
    for row, cell in enumerate(data.columns[line.column]):
        if not tables.is_single(cell):
            value, problem = None, "a list, a structure or bytes in place of one value"
        else:
            value, problem = (None, "") if _blank(cell) else read_cell(line, cell)
        values.append(value)
        if problem:
            problems.append(Problem(data.number(row), line.column, problem))
    numbers = {row: value for row, value in enumerate(values) if isinstance(value, float)}
    if line.kind == "number" and too_wide(numbers.values()):
        largest = max(numbers, key=lambda row: abs(numbers[row]))
        problems.append(
            Problem(data.number(largest), line.column, "too large a number beside the others of its column")
        )
    kind: Kind = "category" if line.kind == "ordinal" else line.kind  # type: ignore[assignment]
    coded = tuple(line.labels) if line.coding and kind == "category" else None
    unit = f" ({line.unit})" if line.unit else ""
    return RawColumn(
        line.column,
        line.display_name + unit,
        f"[{line.section}]" if line.section else "",
        line.unit,
        values,
        coded,
        line.leak_group or None,
        kind,
        visible=line.visible,
    )


def _blank(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _code(line: Line, cell: Any) -> str:
    """A cell as a codebook writes it; TRUE in any of the ways in which it is written."""
    if isinstance(cell, bool):
        spellings = (str(cell).upper(), str(cell), str(cell).lower(), str(int(cell)))
        return next((text for text in spellings if text in line.coding), spellings[0])
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _number_code(line: Line, code: str) -> str:
    """The code of the same number, so that a cell -9.0 is the code -9; else the text itself."""
    number = as_number(code)
    return code if code in line.coding else next((own for own in line.coding if as_number(own) == number), code)


def _number(line: Line, cell: Any) -> tuple[Any, str]:
    code = _number_code(line, _code(line, cell))
    if code in line.coding:
        return line.coding[code] or None, ""
    if isinstance(cell, bool) or math.isnan(as_number(cell)):
        return None, _error(code) or "not a number"
    if abs(as_number(cell)) >= BEYOND:
        return None, f"a number of {BEYOND:.0e} or more"
    return as_number(cell), ""


def _datetime(line: Line, cell: Any) -> tuple[Any, str]:
    code = _code(line, cell)
    if code in line.coding:
        return None, ""
    if isinstance(cell, datetime.datetime):
        found = cell.replace(tzinfo=None)
    elif isinstance(cell, datetime.date):
        found = datetime.datetime(cell.year, cell.month, cell.day)
    else:
        try:
            found = datetime.datetime.fromisoformat(code)
        except ValueError:
            return None, _error(code) or "not a date such as 2024-01-31 or 2024-01-31 08:30"
    if found.tzinfo is not None:
        return None, "a time with a time zone; write the time of the hospital's own clock, without a zone"
    if not FIRST_YEAR <= found.year <= LAST_YEAR:
        return (
            None,
            f"a date outside the years {FIRST_YEAR} to {LAST_YEAR}; if it means missing, give it as a code, such as {code}=",
        )
    return found, ""


def _text(line: Line, cell: Any) -> tuple[Any, str]:
    code = _code(line, cell)
    if code in line.coding:
        return line.coding[code] or None, ""
    if _error(code):
        return None, _error(code)
    if line.coding:
        return None, "a code that the codebook does not have"
    if line.kind == "category" and isinstance(cell, datetime.date):
        return None, "a date, where the codebook says category"
    return code, ""


def _error(code: str) -> str:
    return "an error value of a spreadsheet" if code in tables.ERROR_VALUES else ""
