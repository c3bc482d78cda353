"""Checks the cells of a custom registry against the codebook, and turns them into values."""

from __future__ import annotations

import datetime
import math
from typing import Any

from shared.cohorts import tables
from shared.cohorts.custom.codebook import Line
from shared.cohorts.custom.codes import Codes, code_text, codes_of, is_blank, unknown_code
from shared.cohorts.custom.decimals import misread, with_point
from shared.cohorts.custom.problems import Problem
from shared.cohorts.tables import WORKBOOK_DIGITS, RawTable
from shared.errors import InputError
from shared.registry.build import RawColumn
from shared.registry.features import BEYOND, Kind, as_number, too_wide

FIRST_YEAR, LAST_YEAR = (
    1700,
    2250,
)  # of dates; pandas cannot hold much earlier or later ones, and they often mean missing
MANY_REPEATS = 0.1  # if more than this share of ids are repeats, the rows are visits and not patients


def read_ids(name: str, data: RawTable, problems: list[Problem]) -> list[str]:
    """The id of each row: `[rows]`. Cells that cannot be an id are added to `problems`.

    Raises InputError if the rows are not patients, or if a spreadsheet has rounded the ids.
    """
    ids = [tables.id_text(cell) if tables.is_single(cell) else "" for cell in data.columns[name]]
    _check_repeats(name, data, ids)
    _check_rounded(name, data, ids)
    first: dict[str, int] = {}
    for place, (identifier, cell) in enumerate(zip(ids, data.columns[name], strict=True)):
        row = data.number(place)
        if not tables.is_single(cell):
            problems.append(Problem(row, name, "a list, a structure or bytes in place of an id"))
            continue
        problem = tables.id_problem(cell, workbook=tables.is_workbook(data.path))
        if identifier == "":
            problems.append(Problem(row, name, "no id"))
        elif problem:
            problems.append(Problem(row, name, problem))
        elif identifier in first:
            problems.append(Problem(row, name, f"the same id as row {first[identifier]}"))
        first.setdefault(identifier, row)
    return ids


def _check_repeats(name: str, data: RawTable, ids: list[str]) -> None:
    present = [identifier for identifier in ids if identifier]
    distinct = len(set(present))
    if distinct == 1 and len(present) > 1:
        raise InputError(f"{data.path}: column {name} holds one id in all of its {len(present):,} rows: one patient only, or not "
                         f"the column that names patients; one row is one patient")  # fmt: skip
    if len(present) - distinct > max(2, MANY_REPEATS * len(present)):
        raise InputError(f"{data.path}: {distinct:,} ids of column {name} in {len(present):,} rows: rows look like visits, and "
                         f"one row must be one patient; keep one of each, or choose another id")  # fmt: skip


def _check_rounded(name: str, data: RawTable, ids: list[str]) -> None:
    """Raise InputError if all long ids of a text file end in zeros: a workbook has rounded them before."""
    long = [identifier for identifier in ids if identifier.isdigit() and len(identifier) > WORKBOOK_DIGITS]
    distinct_long = set(long)
    spelled = [cell for cell in data.columns[name] if isinstance(cell, str) and tables.id_text(cell) in distinct_long]
    if len(long) > 1 and len(long) == len(spelled) and all(not text[WORKBOOK_DIGITS:].strip("0") for text in long):
        raise InputError(f"{data.path}: column {name}: all ids of more than {WORKBOOK_DIGITS} digits end in 0, as where Excel "
                         f"rounded them: it keeps {WORKBOOK_DIGITS} digits of a number; export them again, as texts")  # fmt: skip


def read_column(line: Line, data: RawTable, problems: list[Problem]) -> tuple[RawColumn, list[str]]:
    """The values of a column, and notes on how its codes were read. Cells that do not match are added to `problems`."""
    single = all(map(tables.is_single, data.columns[line.column]))
    codes = codes_of(line, data) if single and line.kind != "datetime" else Codes(data.columns[line.column])
    values = []
    for row, cell in enumerate(codes.cells):
        value, problem = _value(line, cell, codes, data.decimal)
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
    column = RawColumn(
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
    return column, list(codes.notes)


def _value(line: Line, cell: Any, codes: Codes, decimal: str) -> tuple[Any, str]:
    """The value of a cell (None if it is missing), and what is wrong with the cell ("" if nothing)."""
    if not tables.is_single(cell):
        return None, "a list, a structure or bytes in place of one value"
    if is_blank(cell):
        return None, ""
    text = code_text(line.coding, cell)
    code = codes.same.get(text, text)
    if codes.labels:
        return text, ""
    if code in line.coding:
        return (None if line.kind == "datetime" else line.coding[code] or None), ""
    if line.kind == "number" and text in codes.named:
        return None, "a label of the file in place of a number; say in the coding what its code is, as in 999= or 0=0"
    if line.kind == "number":
        return _number(cell, code, decimal)
    return _datetime(cell, code) if line.kind == "datetime" else _text(line, cell, code, decimal)


def _number(cell: Any, code: str, decimal: str) -> tuple[Any, str]:
    wrong = misread(cell, decimal)
    number = as_number(with_point(cell, decimal))
    if isinstance(cell, bool) or math.isnan(number) or wrong:
        return None, _error(code) or wrong or "not a number"
    if abs(number) >= BEYOND:
        return None, f"a number of {BEYOND:.0e} or more"
    return number, ""


def _datetime(cell: Any, code: str) -> tuple[Any, str]:
    if isinstance(cell, datetime.datetime):
        moment = cell.replace(tzinfo=None)
    elif isinstance(cell, datetime.date):
        moment = datetime.datetime(cell.year, cell.month, cell.day)
    else:
        try:
            moment = datetime.datetime.fromisoformat(code)
        except ValueError:
            return None, _error(code) or "not a date such as 2024-01-31 or 2024-01-31 08:30"
    if moment.tzinfo is not None:
        return None, "a time with a time zone; write the time of the hospital's own clock, without a zone"
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        return (
            None,
            f"a date outside the years {FIRST_YEAR} to {LAST_YEAR}; if it means missing, give it as a code, such as {code}=",
        )
    return moment, ""


def _text(line: Line, cell: Any, code: str, decimal: str) -> tuple[Any, str]:
    if _error(code):
        return None, _error(code)
    if line.coding:
        return None, unknown_code(line, code, decimal)
    if line.kind == "category" and isinstance(cell, datetime.date):
        return None, "a date, where the codebook says category"
    return code, ""


def _error(code: str) -> str:
    return "an error value of a spreadsheet" if code in tables.ERROR_VALUES else ""
