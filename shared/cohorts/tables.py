"""Reads raw tables: workbooks, CSV and Parquet files. Cells are not interpreted; a blank cell is ""."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.cohorts.old_workbook import read_old_sheet
from shared.cohorts.workbook import read_sheet
from shared.errors import InputError
from shared.registry.store import read_parquet
from shared.storage import files

CODE = re.compile(
    r"[A-Za-z]?[\d., -]{1,12}|nan|NA"
)  # short texts that cannot identify a patient; messages may repeat them
MAX_CELL = 32_767  # characters; the most that a cell of a workbook can hold


# What a spreadsheet shows if it could not calculate the value of a cell.
ERROR_VALUES = frozenset(
    ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A", "#GETTING_DATA", "#SPILL!", "#CALC!", "#FIELD!",
     "#BLOCKED!", "#CONNECT!", "#UNKNOWN!", "#BUSY!")
)  # fmt: skip
FRACTION = "an id with a fraction; ids are whole numbers or texts"
WORKBOOK_DIGITS = 15  # a workbook keeps so many digits of a number; the others are lost

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_INDEX_NAME = re.compile(r"|Unnamed: \d+")  # names that pandas and R give to a column of row numbers
_SPELLED_NUMBER = re.compile(r"[+-]?[0-9]+\.([0-9]*)([eE][+-]?[0-9]+)?")
_SHORTENED = re.compile(
    r"[+-]?[0-9]+(\.[0-9]*)?[eE]\+[0-9]+"
)  # as Excel writes a long number; without "+" it may be a name


@dataclasses.dataclass(frozen=True)
class RawTable:
    """The cells of a file. `columns[name]` is `[rows]`; a blank cell is "". Names have the form that `plain_name` gives.

    `labels` are descriptions of columns that the file contains (Stata, SAS, SPSS). `row_numbers` is a column of row numbers that
    was left out, by name. `notes` say what was left out or read in an unexpected way. `numbers` are the line numbers of the
    rows in the file; the header has 1. If the file has labels for the values of a column, `columns` holds the labels, `codes`
    the original values, and `value_labels` the label of each value. `decimal` is the decimal mark of numbers in texts.
    `undecided` are the columns in which a comma may be a decimal mark or may separate thousands, each with the line number of
    one such cell.
    """

    path: Path
    columns: dict[str, list[Any]]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    row_numbers: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    numbers: Sequence[int] = ()
    codes: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    value_labels: Mapping[str, Mapping[Any, str]] = dataclasses.field(default_factory=dict)
    decimal: str = "."
    undecided: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows there are below the header."""
        return len(next(iter(self.columns.values()), []))

    def number(self, row: int) -> int:
        """The line number in the file of row `row`, which counts from 0."""
        return self.numbers[row] if self.numbers else row + 2

    def only(self, rows: Sequence[int]) -> RawTable:
        """The table with only these rows (counted from 0). They keep their line numbers."""

        def selected(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            return {name: [cells[row] for row in rows] for name, cells in columns.items()}

        return dataclasses.replace(
            self,
            columns=selected(self.columns),
            row_numbers=selected(self.row_numbers),
            codes=selected(self.codes),
            numbers=[self.number(row) for row in rows],
        )


def suffix(path: Path) -> str:
    """The ending of a file name in lower case, without `.gz`: `.csv` for DATA.CSV.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def check_folder(source: Path, should_hold: str) -> None:
    """Raise InputError if `source` is not a folder. The message says that it should hold `should_hold`."""
    if not source.is_dir():
        problem = "is a file; give the folder that it lies in" if source.is_file() else "no such folder"
        raise InputError(f"{source}: {problem}; it should hold {should_hold}")


def find(source: Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The path of each wanted file: for each key, the first of its possible names that is in the folder `source`.

    Upper and lower case are the same. Raises InputError that lists every missing file.
    """
    check_folder(source, ", ".join(names[0] for names in wanted.values()))
    paths, missing = {}, []
    by_lower_name = {path.name.lower(): path for path in sorted(source.iterdir()) if path.is_file()}
    for key, names in wanted.items():
        exact = next((source / name for name in names if (source / name).is_file()), None)
        path = exact or next((by_lower_name[name.lower()] for name in names if name.lower() in by_lower_name), None)
        if path is None:
            missing.append(" or ".join(names))
        else:
            paths[key] = path
    if missing:
        raise InputError(f"{source}: missing {'; '.join(missing)}")
    return paths


def digest(path: Path) -> str:
    """BLAKE2b digest of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_dictionary(path: Path) -> dict[str, str]:
    """Read a JSON object whose values are all texts. Raises InputError for anything else."""
    dictionary = files.read_json(path)
    if not isinstance(dictionary, dict) or not all(isinstance(value, str) for value in dictionary.values()):
        raise InputError(f"{path}: must be one JSON object of texts, Korean to English")
    return {_cell(word): english for word, english in dictionary.items()}


def plain_name(cell: Any) -> str:
    """A column name in a form that can be compared.

    Unicode form NFKC, without invisible characters, with single blanks between words and none at the ends.
    """
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).split())


def named(where: object, cells: Sequence[Any]) -> list[str]:
    """The plain names of the columns of a header; "" for a column without a name.

    `where` is how messages call the file. Raises InputError if two columns have the same name.
    """
    names = [plain_name(cell) for cell in cells]
    duplicates = sorted({name for name in names if name and names.count(name) > 1})
    if not duplicates:
        return names
    as_written = [str(cell) for cell, name in zip(cells, names, strict=True) if name in duplicates]
    same = "" if len(set(as_written)) < len(as_written) else " (apart from blanks and the Unicode form of letters)"
    raise InputError(f"{where}: these columns occur twice{same}: {', '.join(duplicates)}")


def read_table(path: Path, *, merged: bool = False, errors: bool = False, encoding: str = "") -> RawTable:
    """Read the first visible sheet of a workbook, a CSV file (also .gz) or a Parquet file. The first row names the columns.

    Only blank cells become ""; a text such as `NA` stays a text. Blank rows are left out, and so is a first column of row
    numbers without a name. If `merged` is true, merged cells of a workbook are allowed: the first has the value, the others
    are blank. If `errors` is true, error values of a spreadsheet are read as texts. `encoding` is that of a CSV file, UTF-8 by
    default. Raises InputError that names the file, the sheet, and the wrong row or column.
    """
    if suffix(path) == ".parquet":
        return table_of(path, read_parquet(path))
    where, rows, notes = _rows(path, merged=merged, errors=errors, encoding=encoding)
    return table_of_rows(path, rows, where=where, notes=notes)


def table_of_rows(
    path: Path, rows: Sequence[Sequence[Any]], *, where: str, notes: Sequence[str] = (), first: int = 1
) -> RawTable:
    """Make a table from rows of cells. The first row names the columns; `first` is its line number in the file.

    `where` is how messages call the file. Raises InputError if a column without a name has a cell, or a name occurs twice.
    """
    if not rows or not any(cell != "" for cell in rows[0]):
        blank = any(cell != "" for row in rows for cell in row)
        raise InputError(
            f"{where}: {'its first row is blank' if blank else 'empty'}, its first row should name the columns"
        )
    names = named(where, rows[0])
    body = [(number, row) for number, row in enumerate(rows[1:], start=first + 1) if any(cell != "" for cell in row)]
    cells = [[row[place] if place < len(row) else "" for _, row in body] for place in range(len(names))]
    index = {names[0]: cells[0]} if is_index(names[0], cells[0]) else {}
    unnamed = {place for place, name in enumerate(names) if name == "" and not (index and place == 0)}
    if _is_shifted(names, [row for _, row in body]):
        raise InputError(f"{where}: row {body[0][0]} has a cell in column {len(names) + 1}, which has no name in the first row; "
                         f"so has every row, as where R writes row names: write it with row.names = FALSE, or name the first "
                         f"column too; or as where a decimal comma splits a number: quote such numbers, or separate cells by "
                         f"semicolons")  # fmt: skip
    for number, row in body:
        stray = next((i for i, cell in enumerate(row) if cell != "" and (i >= len(names) or i in unnamed)), None)
        if stray is not None:
            raise InputError(
                f"{where}: row {number} has a cell in column {stray + 1}, which has no name in the first row"
            )
    columns = {name: values for name, values in zip(names, cells, strict=True) if name and name not in index}
    numbers = [number for number, _ in body]
    return RawTable(path, columns, row_numbers=index, notes=[*notes, *left_out(path, index)], numbers=numbers)


def left_out(path: Path, index: Collection[str]) -> list[str]:
    """Notes that say that columns of row numbers are left out; `index` are their names."""
    return [
        f"{path.name}: its first column ({name or 'without a name'}) numbers the rows and is left out" for name in index
    ]


def is_index(name: str, cells: Sequence[Any]) -> bool:
    """Whether the first column is a column of row numbers from pandas or R: it has no name, and distinct whole numbers."""
    texts = [str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell) for cell in cells]
    numbers = all(text.isascii() and text.isdigit() for text in texts) and len(set(texts)) == len(texts)
    return bool(_INDEX_NAME.fullmatch(name)) and bool(texts) and numbers


def _is_shifted(names: Sequence[str], body: Sequence[Sequence[Any]]) -> bool:
    """Whether all rows have one cell more than the header, as where R wrote row names in a first column without a name."""
    return len(body) > 1 and all(len(row) == len(names) + 1 and row[0] != "" for row in body)


def table_of(path: Path, frame: pd.DataFrame, *, labels: Mapping[str, str] | None = None) -> RawTable:
    """Make a table from a pandas table; a named index becomes a column. Raises InputError if two columns have the same name."""
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    names = named(path, list(frame.columns))
    cells = [_cells(frame.iloc[:, place]) for place in range(len(names))]
    columns = dict(zip(names, cells, strict=True))
    first = names[0] if names else ""
    index = {first: columns.pop(first)} if is_index(first, columns.get(first, [])) else {}
    if "" in columns:
        raise InputError(f"{path}: column {names.index('') + 1} has no name")
    plain = {plain_name(name): label for name, label in (labels or {}).items()}
    return RawTable(path, columns, labels=plain, row_numbers=index, notes=left_out(path, index))


def read_rows(path: Path) -> list[list[Any]]:
    """All rows of the first visible sheet of a workbook, or of a CSV file, with the header.

    Of merged cells the first has the value and the others are blank.
    """
    return _rows(path, merged=True, errors=False, encoding="")[1]


def sheet_notes(path: Path) -> list[str]:
    """Notes on the sheets of a workbook that are not read; empty for other files."""
    return read_sheet(path, merged=True)[2] if suffix(path) == ".xlsx" else []


def _rows(path: Path, *, merged: bool, errors: bool, encoding: str) -> tuple[str, list[list[Any]], list[str]]:
    """Read a file: how messages call it and its sheet, its rows, and notes."""
    where, notes = str(path), list[str]()
    if suffix(path) == ".csv":
        rows = _csv_rows(path, encoding)
    else:
        where, rows, notes = workbook_rows(path, merged=merged)
    check_cells(where, rows, errors=errors)
    return where, rows, notes


def workbook_rows(path: Path, *, merged: bool = False) -> tuple[str, list[list[Any]], list[str]]:
    """Read a workbook (.xlsx or .xls): how messages call the file and its sheet, its rows, and notes."""
    read = read_old_sheet if suffix(path) == ".xls" else read_sheet
    sheet, rows, notes = read(path, merged=merged)
    return f"{path}, sheet {sheet!r}", [[_cell(cell) for cell in row] for row in rows], notes


def check_cells(where: str, rows: Sequence[Sequence[Any]], *, errors: bool) -> None:
    """Raise InputError for a text that is too long, and, unless `errors` is true, for an error value of a spreadsheet."""
    for number, row in enumerate(rows, start=1):
        for place, cell in enumerate(row, start=1):
            if not isinstance(cell, str):
                continue
            if len(cell) > MAX_CELL:
                raise InputError(f"{where}: row {number}, column {place} holds {len(cell):,} characters; "
                                 f"at most {MAX_CELL:,} are possible")  # fmt: skip
            if not errors and cell in ERROR_VALUES:
                raise InputError(f"{where}: row {number}, column {place} holds {cell}, where a spreadsheet could not "
                                 f"calculate a value; correct the cell or empty it")  # fmt: skip


def csv_rows(lines: Iterable[str], delimiter: str = ",") -> Iterator[list[Any]]:
    """The cells of each record of a delimited text. Raises csv.Error if the text is not valid CSV."""
    csv.field_size_limit(2**31 - 1)  # a huge cell is read, so that a message can name its row
    for row in csv.reader(lines, delimiter=delimiter, strict=True):
        yield [_cell(cell) for cell in row]


def _csv_rows(path: Path, encoding: str) -> list[list[Any]]:
    options: dict[str, Any] = {"encoding": encoding or "utf-8-sig", "newline": ""}
    try:
        with gzip.open(path, "rt", **options) if path.suffix.lower() == ".gz" else path.open(**options) as stream:
            return list(csv_rows(stream))
    except UnicodeDecodeError:
        fix = (
            "name its encoding, such as --encoding=cp949 (a custom registry's), or save it"
            if not encoding
            else "save it"
        )
        raise InputError(f"{path}: not a readable CSV file in {encoding or 'UTF-8'}; {fix} in UTF-8") from None
    except (OSError, csv.Error, EOFError, zlib.error, UnicodeError) as error:
        raise InputError(f"{path}: not a readable CSV file in {encoding or 'UTF-8'} ({error})") from None


def lower_names(table: RawTable) -> dict[str, list[Any]]:
    """The columns by their names in lower case. Raises InputError if two columns then have the same name."""
    names = [name.lower() for name in table.columns]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(
            f"{table.path}: these columns occur twice (apart from upper and lower case): {', '.join(duplicates)}"
        )
    return dict(zip(names, table.columns.values(), strict=True))


def is_utf8(path: Path) -> bool:
    """Whether the content of an uncompressed file is valid UTF-8."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def identifiers(table: RawTable, column: str) -> list[str]:
    """The ids of a column as texts: `[rows]`; 200001.0 becomes 200001, a blank "".

    Raises InputError for a cell that cannot be an id (see `id_problem`).
    """
    for row, cell in enumerate(table.columns[column]):
        problem = id_problem(cell, workbook=is_workbook(table.path))
        if problem:
            raise InputError(f"{table.path}: column {column}, row {table.number(row)}: {problem}")
    return [id_text(cell) for cell in table.columns[column]]


def is_workbook(path: Path) -> bool:
    """Whether the file name is that of an Excel workbook."""
    return suffix(path) in (".xlsx", ".xls")


def id_text(cell: Any) -> str:
    """An id as a text, the same for a number and for a text with that number; "" if it is missing.

    Invisible characters are removed, and letters and digits have Unicode form NFKC. Otherwise one patient could have two ids.
    """
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", str(cell))).strip()
    decimal = _SPELLED_NUMBER.fullmatch(text)
    return text.partition(".")[0] if decimal and not decimal[2] and not decimal[1].strip("0") else text


def id_problem(cell: Any, *, workbook: bool = False) -> str:
    """Why a cell cannot be an id; "" if it can. `workbook` says that the cell is from a workbook."""
    if isinstance(cell, bool):
        return "an id cannot be TRUE or FALSE"
    if isinstance(cell, float) and cell == cell and not cell.is_integer():
        return FRACTION
    exact = 10**WORKBOOK_DIGITS if workbook else 2**53
    if isinstance(cell, float | int) and (workbook or isinstance(cell, float)) and abs(cell) >= exact:
        digits, why = (
            len(str(abs(int(cell)))),
            f": Excel keeps {WORKBOOK_DIGITS} digits of a number" if workbook else "",
        )
        return f"an id of {digits} digits, of which a number in this file loses the last{why}; store ids as texts"
    decimal = _SPELLED_NUMBER.fullmatch(str(cell).strip()) if isinstance(cell, str) else None
    if (decimal and decimal[2]) or (isinstance(cell, str) and _SHORTENED.fullmatch(cell.strip())):
        return "an id that a spreadsheet has shortened to a power of ten; store ids as texts"
    return FRACTION if decimal and decimal[1].strip("0") else ""


def is_single(cell: Any) -> bool:
    """Whether a cell holds a single value. A cell of a Parquet file may hold a list, a structure or bytes."""
    return not isinstance(cell, list | tuple | set | dict | bytes | np.ndarray)


def shown_code(value: Any) -> str:
    """How a message may show a cell: a short code as it is, but only the length of any other text, to show no patient's data."""
    text = str(value)
    return repr(text) if CODE.fullmatch(text) else f"a text of {len(text)} characters"


def _cells(column: pd.Series) -> list[Any]:
    if column.dtype == "float32":  # 7.4, not 7.400000095367432
        return ["" if value != value else float(str(value)) for value in column.to_numpy()]
    return [_cell(value) for value in column.astype(object)]


def _cell(value: Any) -> Any:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    # Unicode form NFC makes texts of different programs equal; macOS writes Hangul and accents in another form.
    return unicodedata.normalize("NFC", value) if isinstance(value, str) and not value.isascii() else value
