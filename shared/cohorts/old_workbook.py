"""Reads Excel workbooks of the format before 2007 (.xls), with the same result as for .xlsx files."""

from __future__ import annotations

import datetime
import struct
from pathlib import Path
from typing import Any

import xlrd
from openpyxl.utils import get_column_letter

from shared.errors import InputError

# The exceptions that xlrd raises for a file that is damaged or no workbook.
UNREADABLE = (
    xlrd.XLRDError,
    xlrd.compdoc.CompDocError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


def read_old_sheet(path: Path, *, merged: bool) -> tuple[str, list[list[Any]], list[str]]:
    """Read the first visible sheet: its name, its cells `[rows][columns]` (None where blank), and notes on other sheets.

    Dates, truth values and error values have the same form as from `workbook.read_sheet`. If `merged` is true, of merged cells
    the first has the value and the others are blank; otherwise merged cells are refused. Raises InputError for refused merged
    cells, and for a file that is no workbook.
    """
    try:
        with xlrd.open_workbook(file_contents=path.read_bytes(), formatting_info=True, logfile=_Silent()) as book:
            return _read(path, book, merged)
    except InputError:
        raise
    except UNREADABLE as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path}: not a readable Excel workbook ({reason})") from None


class _Silent:
    """A file-like object for xlrd's warnings that ignores them."""

    def write(self, _: str) -> None:
        """Ignore a text."""


def _read(path: Path, book: xlrd.Book, merged: bool) -> tuple[str, list[list[Any]], list[str]]:
    sheets = book.sheets()
    sheet = next((sheet for sheet in sheets if sheet.visibility == 0), None)
    if sheet is None:
        names = ", ".join(repr(sheet.name) for sheet in sheets)
        raise InputError(
            f"{path}: every sheet of cells is hidden ({names}); show the one to be read, or remove the others"
        )
    if not merged:
        _refuse_merged(f"{path}, sheet {sheet.name!r}", sheet)
    rows = [[_value(cell, book.datemode) for cell in sheet.row(number)] for number in range(sheet.nrows)]
    others = [repr(other.name) + (" (hidden)" if other.visibility else "") for other in sheets if other is not sheet]
    notes = [f"{path.name}: read from sheet {sheet.name!r}; not read: {', '.join(others)}"] if others else []
    return sheet.name, rows, notes


def _refuse_merged(where: str, sheet: xlrd.sheet.Sheet) -> None:
    for top, bottom, left, right in sheet.merged_cells:
        if top >= sheet.nrows or sheet.cell_type(top, left) in (xlrd.XL_CELL_EMPTY, xlrd.XL_CELL_BLANK):
            continue
        cells = f"{get_column_letter(left + 1)}{top + 1}:{get_column_letter(right)}{bottom}"
        if top == 0:
            raise InputError(f"{where}: cells {cells} of its first row are merged, as in a header of two rows; one row must name "
                             f"every column: unmerge them, name each, and delete the other row")  # fmt: skip
        raise InputError(f"{where}: cells {cells} are merged, so that only the first of them has a value; "
                         f"unmerge them and fill in each")  # fmt: skip


def _value(cell: xlrd.sheet.Cell, datemode: int) -> Any:
    """The value of a cell. Whole numbers become int, since the format stores all numbers as float."""
    if cell.ctype in (xlrd.XL_CELL_EMPTY, xlrd.XL_CELL_BLANK):
        return None
    if cell.ctype == xlrd.XL_CELL_NUMBER:
        return int(cell.value) if cell.value.is_integer() and abs(cell.value) < 2**53 else cell.value
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return bool(cell.value)
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(cell.value, "#UNKNOWN!")
    if cell.ctype == xlrd.XL_CELL_DATE:
        if 0 <= cell.value < 1:  # a time of day
            return (datetime.datetime.min + datetime.timedelta(seconds=round(cell.value * 86_400))).time()
        return xlrd.xldate_as_datetime(cell.value, datemode)
    return cell.value
