"""Reads Excel workbooks (.xlsx), and refuses sheets whose cells would be read wrongly."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import openpyxl
from openpyxl.utils import range_boundaries
from openpyxl.utils.exceptions import InvalidFileException

from shared.cohorts.private_openpyxl import sheet_xml
from shared.errors import InputError

# The exceptions that openpyxl raises for a file that is damaged or no workbook.
UNREADABLE = (
    OSError,
    KeyError,
    ValueError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,  # an unknown compression method
    RuntimeError,  # the workbook needs a password
    SyntaxError,  # invalid XML
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    InvalidFileException,
)
VISIBLE = "visible"
CHUNK = 2**20  # bytes of XML that are read at a time

_FORMULA = re.compile(rb"<(?:\w+:)?f[\s/>]")
_MERGED = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?ref=[\"']([A-Z0-9:$]+)[\"']")
_PLACE = re.compile(rb"<(?:\w+:)?(?:row|c)\s[^>]*?\br=[\"']([A-Z]*)([0-9]+)[\"']")  # the position of a row or of a cell


def read_sheet(path: Path, *, merged: bool) -> tuple[str, list[list[Any]], list[str]]:
    """Read the first visible sheet: its name, its cells `[rows][columns]` (None where blank), and notes on other sheets.

    All cells are read, whatever size the file gives for the sheet. If `merged` is true, of merged cells the first has the value
    and the others are blank; otherwise merged cells are refused. Raises InputError for refused merged cells, for formulas
    without a stored value, and for a file that is no workbook.
    """
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            name, rows, notes = _read(path, book, merged)
        finally:
            book.close()
    except InputError:
        raise
    except UNREADABLE as error:
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise InputError(f"{path}: not a readable Excel workbook ({reason})") from None
    return name, rows, notes


def _read(path: Path, book: Any, merged: bool) -> tuple[str, list[list[Any]], list[str]]:
    sheets = book.worksheets
    if not sheets:
        raise InputError(f"{path}: this workbook has no sheet of cells")
    sheet = next((sheet for sheet in sheets if sheet.sheet_state == VISIBLE), None)
    if sheet is None:
        names = ", ".join(repr(sheet.title) for sheet in sheets)
        raise InputError(
            f"{path}: every sheet of cells is hidden ({names}); show the one to be read, or remove the others"
        )
    where = f"{path}, sheet {sheet.title!r}"
    sheet.reset_dimensions()  # some programs store a size that is too small, and openpyxl would not read beyond it
    rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    formulas, ranges = _marks(where, sheet_xml(book, sheet))
    if formulas:
        _refuse_uncalculated(where, sheet_xml(book, sheet), computed=not book.calculation.fullCalcOnLoad)
    if not merged:
        _refuse_merged(where, rows, ranges)
    return sheet.title, _even(rows), _notes(path, sheet, book.worksheets)


def _even(rows: list[list[Any]]) -> list[list[Any]]:
    """The rows, all of the same length: blanks at the end are removed from the longest and added to the others."""
    widths = [max((place for place, cell in enumerate(row, start=1) if cell is not None), default=0) for row in rows]
    width = max(widths, default=0)
    return [row[:width] + [None] * (width - len(row)) for row in rows]


def _notes(path: Path, sheet: Any, sheets: list[Any]) -> list[str]:
    others = [
        repr(other.title) + ("" if other.sheet_state == VISIBLE else " (hidden)")
        for other in sheets
        if other is not sheet
    ]
    return [f"{path.name}: read from sheet {sheet.title!r}; not read: {', '.join(others)}"] if others else []


def _marks(where: str, stream: IO[bytes]) -> tuple[bool, list[str]]:
    """Whether a sheet has formulas, and its merged ranges, such as A2:A5.

    Raises InputError if rows or cells are not in order, or occur twice: openpyxl would leave some of them out silently.
    """
    formulas, ranges, unread, last = False, dict[str, None](), b"", (0, 0, b"")
    with stream:
        while chunk := stream.read(CHUNK):
            complete, mark, rest = (unread + chunk).rpartition(b"<")  # a tag must not be cut in two
            unread = mark + rest
            formulas = formulas or _FORMULA.search(complete) is not None
            ranges |= dict.fromkeys(merged.decode() for merged in _MERGED.findall(complete))
            for column, row in _PLACE.findall(complete):
                place = (int(row), len(column), column)
                if place <= last:
                    raise InputError(f"{where}: row {row.decode()} comes behind row {last[0]}, or its cells are not in order; "
                                     f"some of them would be lost; open the workbook in Excel or LibreOffice and save "
                                     f"it there")  # fmt: skip
                last = place
    return formulas, list(ranges)


def _refuse_merged(where: str, rows: list[list[Any]], ranges: list[str]) -> None:
    for merged in ranges:
        column, row, _, _ = range_boundaries(merged)
        cells = rows[row - 1] if row and row <= len(rows) else []
        if column and column <= len(cells) and cells[column - 1] is not None:
            if row == 1:
                raise InputError(f"{where}: cells {merged} of its first row are merged, as in a header of two rows; one row must "
                                 f"name every column: unmerge them, name each, and delete the other row")  # fmt: skip
            raise InputError(f"{where}: cells {merged} are merged, so that only the first of them has a value; "
                             f"unmerge them and fill in each")  # fmt: skip


def _refuse_uncalculated(where: str, stream: IO[bytes], *, computed: bool) -> None:
    """Raise InputError if formulas have no stored value. `computed`: the workbook does not ask to be calculated when opened."""
    results = list(_results(stream))
    empty = [cell for cell, value in results if value is None]
    # A program that cannot calculate formulas stores no value for them, or 0 for each.
    if not empty and not computed and all(value == "0" for _, value in results):
        empty = [cell for cell, _ in results]
    if empty:
        more = f" and {len(empty) - 1:,} more are formulas that were" if len(empty) > 1 else " is a formula that was"
        raise InputError(f"{where}: cell {empty[0]}{more} never calculated; open the workbook in Excel or "
                         f"LibreOffice and save it there, or save it as CSV")  # fmt: skip


def _results(stream: IO[bytes]) -> Iterator[tuple[str, str | None]]:
    """The position and the stored value of each formula; None if no value is stored. An empty text is a value."""
    with stream:
        for _, element in ElementTree.iterparse(stream):
            tag = _tag(element)
            if tag == "c":
                parts = {_tag(part): part for part in element}
                if "f" in parts:
                    text = parts["v"].text if "v" in parts else None
                    is_text = element.get("t") == "str" and "v" in parts
                    yield element.get("r", "?"), text if text or not is_text else ""
            if tag in ("c", "row"):
                element.clear()


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
