"""Raw tables as registries deliver them: workbooks, CSV, Parquet. Cells come as they stand, blanks as ""."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
from openpyxl.utils.exceptions import InvalidFileException

from shared import files
from shared.errors import InputError
from shared.registry.store import read_parquet

CODE = re.compile(r"[A-Za-z]?[\d., -]{1,12}|nan|NA")
# What openpyxl raises for files that are no workbooks, or damaged ones.
UNREADABLE = (
    OSError,
    KeyError,
    ValueError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,  # a way of compression that is not known
    RuntimeError,  # a password is needed
    SyntaxError,  # XML that is none
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    InvalidFileException,
)
MAX_CELL = 32_767  # characters; what a workbook's cell can hold


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Cells as they stand in a file, blanks as "": `columns[name]` is `[rows]`."""

    path: Path
    columns: dict[str, list[Any]]

    @property
    def rows(self) -> int:
        """How many rows there are below the header."""
        return len(next(iter(self.columns.values()), []))


def find(source: Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """For each key the first of its file names that is in `source`. Raises InputError listing every one missing."""
    if not source.is_dir():
        first = ", ".join(names[0] for names in wanted.values())
        what = "is a file; give the folder that it lies in" if source.is_file() else "no such folder"
        raise InputError(f"{source}: {what}; it should hold {first}")
    found, missing = {}, []
    for key, names in wanted.items():
        path = next((source / name for name in names if (source / name).is_file()), None)
        if path is None:
            missing.append(" or ".join(names))
        else:
            found[key] = path
    if missing:
        raise InputError(f"{source}: missing {'; '.join(missing)}")
    return found


def digest(path: Path) -> str:
    """BLAKE2b digest of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_dictionary(path: Path) -> dict[str, str]:
    """A JSON object of texts. Raises InputError for anything else."""
    dictionary = files.read_json(path)
    if not isinstance(dictionary, dict) or not all(isinstance(value, str) for value in dictionary.values()):
        raise InputError(f"{path}: must be one JSON object of texts, Korean to English")
    return dictionary


def read_table(path: Path) -> RawTable:
    """Read a workbook's first sheet, a CSV (also .gz) or a Parquet file; the first row names the columns.

    No text means missing here: `NA` stays a text, and only blank cells are "". Rows without any cell are left out.
    Raises InputError naming the file, and the row or column that is wrong.
    """
    if path.suffix == ".parquet":
        table = read_parquet(path)
        columns = {str(name): [_cell(value) for value in table[name].astype(object)] for name in table.columns}
        return RawTable(path, columns)
    rows = read_rows(path)
    if not rows or not any(rows[0]):
        raise InputError(f"{path}: empty, its first row should name the columns")
    header = [str(name) for name in rows[0] if name != ""]
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise InputError(f"{path}: these columns occur twice: {', '.join(twice)}")
    positions = [position for position, name in enumerate(rows[0]) if name != ""]
    for number, row in enumerate(rows[1:], start=2):
        stray = next((i for i, cell in enumerate(row) if cell != "" and (i >= len(rows[0]) or rows[0][i] == "")), None)
        if stray is not None:
            raise InputError(
                f"{path}: row {number} has a cell in column {stray + 1}, which has no name in the first row"
            )
    body = [row for row in rows[1:] if any(cell != "" for cell in row)]
    columns = {
        name: [row[position] if position < len(row) else "" for row in body]
        for name, position in zip(header, positions, strict=True)
    }
    return RawTable(path, columns)


def read_rows(path: Path) -> list[list[Any]]:
    """All rows of a workbook's first sheet or of a CSV file, the first included."""
    plain = path.name.removesuffix(".gz")
    rows = _csv_rows(path) if plain.endswith(".csv") else _workbook_rows(path)
    for number, row in enumerate(rows, start=1):
        for place, cell in enumerate(row, start=1):
            if isinstance(cell, str) and len(cell) > MAX_CELL:
                raise InputError(f"{path}: row {number}, column {place} holds {len(cell):,} characters; "
                                 f"at most {MAX_CELL:,} are possible")  # fmt: skip
    return rows


def _workbook_rows(path: Path) -> list[list[Any]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        if not book.worksheets:
            raise InputError(f"{path}: this workbook has no sheet of cells")
        rows = [[_cell(cell) for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except InputError:
        raise
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable Excel workbook ({reason})") from None
    return rows


def _csv_rows(path: Path) -> list[list[Any]]:
    csv.field_size_limit(2**31 - 1)  # so that a huge cell is named with its row
    try:
        opened = gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else path.open(
            encoding="utf-8-sig", newline=""
        )  # fmt: skip
        with opened as stream:
            return [list(row) for row in csv.reader(stream)]
    except (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable CSV file in UTF-8 ({error})") from None


def is_single(cell: Any) -> bool:
    """Whether a cell holds one value; Parquet's may hold lists, structures or bytes."""
    return not isinstance(cell, list | tuple | set | dict | bytes | np.ndarray)


def shown_code(value: Any) -> str:
    """A cell as a message may repeat it: codes as they are, of any other text nothing but its length."""
    text = str(value)
    return repr(text) if CODE.fullmatch(text) else f"a text of {len(text)} characters"


def _cell(value: Any) -> Any:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    return value
