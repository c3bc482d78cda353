"""Raw files of every cohort as rows, and written as workbooks or CSV."""

from __future__ import annotations

import csv
import functools
import shutil

import openpyxl

from shared.cohorts import tables
from tests.support.custom_tables import EXAMPLE
from tests.support.golden_registry import FOLDER

ROWS = 15  # of each table of patients


WHOLE = ("metadata", "codebook", "feature")


RAW = {"sepsis": FOLDER / "sepsis" / "raw", "stroke": FOLDER / "stroke" / "raw", "hospitalized": FOLDER / "aki" / "raw",
       "custom": EXAMPLE}  # fmt: skip


BOOKS = {
    "sepsis": ("data", "metadata"),
    "stroke": ("additional", "data", "metadata", "nihss"),
    "hospitalized": ("metadata",),
    "custom": ("data",),
}


@functools.cache
def sheets(cohort):
    """The rows of each raw file by its name, the tables of patients cut short."""
    found = {}
    for path in sorted(RAW[cohort].iterdir()):
        name = path.name.partition(".")[0]
        if path.suffix != ".json":
            rows = tables.read_rows(path)
            found[name] = rows if name in WHOLE else rows[: ROWS + 1]
    return found


def write(folder, cohort, sheets):
    """As workbooks where they must be, else as CSV, which is quick to write."""
    folder.mkdir()
    for path in RAW[cohort].glob("*.json"):
        shutil.copy(path, folder)
    for name, rows in sheets.items():
        if name in BOOKS[cohort]:
            book = openpyxl.Workbook()
            for row in rows:
                cells = [cell[: tables.MAX_CELL] if isinstance(cell, str) else cell for cell in row]
                book.active.append([None if cell == "" else cell for cell in cells])
            book.save(folder / f"{name}.xlsx")
        else:
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows(rows)
