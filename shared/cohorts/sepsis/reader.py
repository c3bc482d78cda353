"""Reading the sepsis registry's raw files: the data, its metadata and the Korean-English dictionary."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
from openpyxl.utils.exceptions import InvalidFileException

from shared import files
from shared.errors import InputError
from shared.registry.store import read_parquet

DATA = ("data.xlsx", "data.csv", "data.parquet")
METADATA = ("metadata.xlsx", "metadata.csv")
DICTIONARY = ("kor_to_eng.json", "dictionary.json")


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Cells as they stand in a file, blanks as "": `columns[name]` is `[rows]`."""

    path: Path
    columns: dict[str, list[Any]]

    @property
    def rows(self) -> int:
        """How many rows there are below the header."""
        return len(next(iter(self.columns.values()), []))


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """The three files of a registry and their digests."""

    data: RawTable
    metadata: RawTable
    dictionary: dict[str, str]
    digests: dict[str, str]


def read(source: Path) -> RawFiles:
    """Read the raw files in `source`. Raises InputError listing every file that is missing, or naming a damaged one."""
    data, metadata, dictionary_path = find(source)
    dictionary = files.read_json(dictionary_path)
    if not isinstance(dictionary, dict) or not all(isinstance(value, str) for value in dictionary.values()):
        raise InputError(f"{dictionary_path}: must be one JSON object of texts, Korean to English")
    return RawFiles(
        data=read_table(data),
        metadata=read_table(metadata),
        dictionary=dictionary,
        digests=digests(source),
    )


def find(source: Path) -> list[Path]:
    """Data, metadata and dictionary in `source`. Raises InputError listing every file that is missing."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; it should hold {DATA[0]}, {METADATA[0]} and {DICTIONARY[0]}")
    found, missing = [], []
    for names in (DATA, METADATA, DICTIONARY):
        path = next((source / name for name in names if (source / name).is_file()), None)
        if path is None:
            missing.append(" or ".join(names))
        else:
            found.append(path)
    if missing:
        raise InputError(f"{source}: missing {'; '.join(missing)}")
    return found


def digests(source: Path) -> dict[str, str]:
    """BLAKE2b digest of each raw file by its name, in hexadecimal."""
    result = {}
    for path in find(source):
        with path.open("rb") as stream:
            result[path.name] = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return result


def read_table(path: Path) -> RawTable:
    """Read a workbook's first sheet, a CSV or a Parquet file; the first row names the columns.

    No text means missing here: `NA` stays a text, and only blank cells are "".
    """
    if path.suffix == ".parquet":
        table = read_parquet(path)
        columns = {str(name): [_cell(value) for value in table[name].astype(object)] for name in table.columns}
        return RawTable(path, columns)
    rows = _csv_rows(path) if path.suffix == ".csv" else _workbook_rows(path)
    if not rows or not any(rows[0]):
        raise InputError(f"{path}: empty, its first row should name the columns")
    header = [str(name) for name in rows[0] if name != ""]
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise InputError(f"{path}: these columns occur twice: {', '.join(twice)}")
    positions = [position for position, name in enumerate(rows[0]) if name != ""]
    body = [row for row in rows[1:] if any(cell != "" for cell in row)]
    columns = {
        name: [row[position] if position < len(row) else "" for row in body]
        for name, position in zip(header, positions, strict=True)
    }
    return RawTable(path, columns)


def _workbook_rows(path: Path) -> list[list[Any]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = [[_cell(cell) for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, InvalidFileException) as error:
        raise InputError(f"{path}: not a readable Excel workbook ({str(error).splitlines()[0]})") from None
    return rows


def _csv_rows(path: Path) -> list[list[Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [list(row) for row in csv.reader(stream)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file in UTF-8 ({error})") from None


def _cell(value: Any) -> Any:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    return value
