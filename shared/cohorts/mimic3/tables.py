"""The CSV files of MIMIC-III from PhysioNet: finds them, checks their headers, and makes a DuckDB view of each."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
from tqdm import tqdm

from shared.cohorts.tables import plain_name
from shared.errors import InputError
from shared.storage import files

# The columns that are used, with their types. Codes and free values are texts, since leading zeros matter.
TABLES: dict[str, dict[str, str]] = {
    "patients": {"subject_id": "BIGINT", "gender": "VARCHAR", "dob": "TIMESTAMP", "dod": "TIMESTAMP",
                 "expire_flag": "BIGINT"},
    "admissions": {"subject_id": "BIGINT", "hadm_id": "BIGINT", "admittime": "TIMESTAMP", "dischtime": "TIMESTAMP"},
    "icustays": {"subject_id": "BIGINT", "hadm_id": "BIGINT", "icustay_id": "BIGINT", "first_careunit": "VARCHAR",
                 "intime": "TIMESTAMP", "outtime": "TIMESTAMP", "los": "DOUBLE"},
    "chartevents": {"subject_id": "BIGINT", "hadm_id": "BIGINT", "icustay_id": "BIGINT", "itemid": "BIGINT",
                    "charttime": "TIMESTAMP", "value": "VARCHAR", "valuenum": "DOUBLE"},
    "labevents": {"hadm_id": "BIGINT", "itemid": "BIGINT", "charttime": "TIMESTAMP", "valuenum": "DOUBLE"},
    "microbiologyevents": {"row_id": "BIGINT", "subject_id": "BIGINT", "hadm_id": "BIGINT", "chartdate": "TIMESTAMP",
                           "charttime": "TIMESTAMP"},
    "prescriptions": {"hadm_id": "BIGINT", "icustay_id": "BIGINT", "startdate": "TIMESTAMP", "enddate": "TIMESTAMP",
                      "gsn": "VARCHAR"},
    "inputevents_mv": {"icustay_id": "BIGINT", "starttime": "TIMESTAMP", "endtime": "TIMESTAMP", "itemid": "BIGINT",
                       "amount": "DOUBLE", "rate": "DOUBLE", "rateuom": "VARCHAR", "statusdescription": "VARCHAR"},
    "inputevents_cv": {"icustay_id": "BIGINT", "charttime": "TIMESTAMP", "itemid": "BIGINT", "amount": "DOUBLE",
                       "rate": "DOUBLE", "rateuom": "VARCHAR"},
    "outputevents": {"icustay_id": "BIGINT", "charttime": "TIMESTAMP", "itemid": "BIGINT", "value": "DOUBLE"},
    "diagnoses_icd": {"hadm_id": "BIGINT", "seq_num": "BIGINT", "icd9_code": "VARCHAR"},
    "d_items": {"itemid": "BIGINT"},
}  # fmt: skip
UNIQUE = {"patients": "subject_id", "admissions": "hadm_id", "icustays": "icustay_id"}
# Codes that may begin with zeros, each with an SQL condition that is true if another program has turned them into numbers: GSN
# codes have six digits, ICD-9 codes at least three.
CODES = {
    ("prescriptions", "gsn"): r"bool_or(regexp_full_match(gsn, '[0-9]+\.0')) OR "
    "(bool_or(regexp_full_match(gsn, '[1-9][0-9]{0,4}')) AND NOT bool_or(starts_with(gsn, '0')))",
    ("diagnoses_icd", "icd9_code"): r"bool_or(regexp_full_match(icd9_code, '[0-9]+\.0|[0-9]{1,2}'))",
}
DEMO_PATIENTS = 100  # the public demo of MIMIC-III has exactly so many patients
MIMIC_IV_COLUMNS = {"stay_id", "anchor_age", "anchor_year"}
MIMIC_IV_FILES = {"hosp", "icu", "inputevents.csv", "inputevents.csv.gz"}
NOT_FINITE = "holds a number that is not finite"
NO_NUMBER, NO_WHOLE_NUMBER = "is not a number", "is not a whole number"
NO_TIME = "is not a time (YYYY-MM-DD HH:MM:SS)"
_PROBLEMS = (NO_NUMBER, NO_WHOLE_NUMBER, NO_TIME)
INDEX_NAMES = ("", "Unnamed: 0")  # names of the column of row numbers that pandas and R add
MISSING = ("NA", "NULL", "None", "<NA>", "\\N")  # texts that some programs write in place of an empty cell
FIX = "download it again from PhysioNet"


@dataclasses.dataclass(frozen=True)
class Table:
    """One CSV file. `header` are the names of its columns in order; a column without a name is called by its position, (1).

    `notes` name columns that are left out.
    """

    name: str
    path: Path
    header: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def scan(self, kinds: Mapping[str, str]) -> str:
        """SQL that reads the file. `kinds` gives the types of columns by lower-case name; all others are texts."""
        types = ", ".join(f"{_quoted(column)}: '{kinds.get(column.lower(), 'VARCHAR')}'" for column in self.header)
        return (
            f"read_csv({_quoted(str(self.path))}, header = true, auto_detect = false, delim = ',', quote = '\"', "
            f"escape = '\"', allow_quoted_nulls = false, "
            f"compression = '{'gzip' if self.path.suffix.lower() == '.gz' else 'none'}', columns = {{{types}}})"
        )


def find(source: Path) -> dict[str, Table]:
    """The tables in `TABLES`, by lower-case name, from files NAME.csv or NAME.csv.gz (upper and lower case are the same).

    Raises InputError if files are missing, if there are two files for a table, if a header lacks a column, or if the folder
    holds MIMIC-IV.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; --source is the folder with MIMIC-III's CSV files")
    entries = sorted(source.iterdir())
    paths_of = {
        name: [path for path in entries if path.name.lower() in (f"{name}.csv", f"{name}.csv.gz")] for name in TABLES
    }
    missing = [f"{name.upper()}.csv[.gz]" for name, paths in paths_of.items() if not paths]
    if missing:
        _refuse_mimic_iv(source, bool({path.name.lower() for path in entries} & MIMIC_IV_FILES))
        raise InputError(f"{source}: missing {', '.join(missing)}; get MIMIC-III v1.4 from PhysioNet")
    for paths in paths_of.values():
        if len(paths) > 1:
            raise InputError(f"{source}: both {paths[0].name} and {paths[1].name} are there; keep one of them")
    return {name: _table(name, paths[0]) for name, paths in paths_of.items()}


def _refuse_mimic_iv(source: Path, is_mimic_iv: bool) -> None:
    if is_mimic_iv:
        raise InputError(f"{source}: these are MIMIC-IV's files; this cohort is made from MIMIC-III v1.4")


def _table(name: str, path: Path) -> Table:
    written, first = _first_lines(path)
    if not written:
        raise InputError(f"{path}: the file is empty; {FIX}")
    names = [plain_name(column) for column in written]
    header = [column or f"({place})" for place, column in enumerate(names, start=1)]
    lower = [column.lower() for column in header]
    _refuse_mimic_iv(path, bool(MIMIC_IV_COLUMNS & set(lower)))
    missing = [column.upper() for column in TABLES[name] if column not in lower]
    if len(header) == 1 and missing:
        raise InputError(f"{path}: line 1 is one column only; columns must be separated by commas")
    if missing:
        raise InputError(f"{path}: line 1 lacks {', '.join(missing)}; this is not MIMIC-III v1.4's {name.upper()}")
    duplicates = sorted({column for column in lower if lower.count(column) > 1})
    if duplicates:
        raise InputError(f"{path}: line 1 has the column {duplicates[0].upper()} twice; {FIX}")
    if len(first) == len(header) + 1:
        raise InputError(f"{path}, line 2: {len(first)} columns in place of {len(header)}, as where R writes row names; "
                         f"write it with row.names = FALSE, or {FIX}")  # fmt: skip
    notes = [f"{path.name}: its first column ({names[0] or 'without a name'}) is none of MIMIC-III's and is left out"]
    return Table(name, path, tuple(header), tuple(notes if names[0] in INDEX_NAMES else ()))


def _first_lines(path: Path) -> tuple[list[str], list[str]]:
    """The cells of the first two lines."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
            lines = [stream.readline(), stream.readline()]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {FIX}") from None
    header, first = (next(csv.reader([line]), []) for line in lines)
    return header, first


def digests(tables: Mapping[str, Table], record: Path | None, *, progress: bool = False) -> dict[str, str]:
    """BLAKE2b digest of each file, by file name.

    `record` keeps them with size and time of change, so that tens of gigabytes are not read again by every start; None: they
    are read, and nothing is kept.
    """
    known = files.read_json_object(record) if record and record.is_file() else {}
    result = {}
    for table in tqdm(tables.values(), desc="digests of the files", unit=" files", disable=not progress):
        status = table.path.stat()
        stamp = [str(table.path.resolve()), status.st_size, status.st_mtime_ns]
        entry = known.get(table.name, {})
        if entry.get("stamp") != stamp:
            with table.path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            known[table.name] = {"stamp": stamp, "digest": digest}
            if record:
                files.write_json(record, known)
        result[table.path.name] = known[table.name]["digest"]
    return result


def make_views(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Table]) -> None:
    """Make one view for each table, with the columns that are used, under lower-case names.

    An empty cell is missing, but a quoted empty text is a text. A column is converted only if a query uses it. Numbers are
    read as texts first, because DuckDB itself would accept 200000.6 as the whole number 200001, and `1_000`, `0x1F`, `nan` and
    `inf` as numbers; here they stop the query with an error.
    """
    for table in tables.values():
        names = ", ".join(_read_as(table, column) for column in table.header if column.lower() in TABLES[table.name])
        connection.execute(f"CREATE VIEW {table.name} AS SELECT {names} FROM {table.scan(_times(table))}")


def _times(table: Table) -> dict[str, str]:
    return {name: kind for name, kind in TABLES[table.name].items() if kind == "TIMESTAMP"}


def _read_as(table: Table, column: str) -> str:
    name = column.lower()
    kind, cell = TABLES[table.name][name], _column(column)
    error_of = {text: f"error({_quoted(f'{table.path}: {name.upper()} {text}')})" for text in (*_PROBLEMS, NOT_FINITE)}
    if kind == "BIGINT":
        # Nearly all cells are plain numbers, which this first condition recognises quickly.
        value = (
            f"CASE WHEN CAST(TRY_CAST({cell} AS BIGINT) AS VARCHAR) = {cell} THEN CAST({cell} AS BIGINT) "
            f"WHEN {cell} IS NULL THEN NULL "
            f"WHEN {_is_whole(cell)} THEN CAST(TRY_CAST({cell} AS DOUBLE) AS BIGINT) ELSE {error_of[NO_WHOLE_NUMBER]} END"
        )
    elif kind == "DOUBLE":
        value = (
            f"CASE WHEN {_is_number(cell)} THEN CAST({cell} AS DOUBLE) WHEN {cell} IS NULL THEN NULL "
            f"WHEN {_is_spelled(cell)} THEN {error_of[NOT_FINITE]} ELSE {error_of[NO_NUMBER]} END"
        )
    elif kind == "TIMESTAMP":
        value = f"CASE WHEN isfinite({cell}) IS NOT false THEN {cell} ELSE {error_of[NO_TIME]} END"
    else:
        value = cell
    return f"{value} AS {name}"


def _is_spelled(cell: str) -> str:
    return f"(TRY_CAST({cell} AS DOUBLE) IS NOT NULL AND NOT contains({cell}, '_'))"


def _is_number(cell: str) -> str:
    return f"(isfinite(TRY_CAST({cell} AS DOUBLE)) AND NOT contains({cell}, '_'))"


def _is_whole(cell: str) -> str:
    """SQL that is true for a whole number, also in the form 200001.0 (pandas) or 2e+05 (R)."""
    number = f"TRY_CAST({cell} AS DOUBLE)"
    return f"({_is_number(cell)} AND {number} = floor({number}) AND abs({number}) < {2**53})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def check_keys(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Table]) -> dict[str, int]:
    """The number of rows of the three small tables in `UNIQUE`, to which all others are joined.

    Raises InputError if a key is missing or occurs twice: a patient would count twice. Also if codes have lost their leading
    zeros: they would never match.
    """
    rows = {}
    for name, key in UNIQUE.items():
        query = f"SELECT count(*), count({key}), count(DISTINCT {key}) FROM {name}"
        with reading(tables):
            count, present, distinct = connection.execute(query).fetchall()[0]
        if present < count:
            raise InputError(f"{tables[name].path}: {key.upper()} is missing in {count - present} rows; {FIX}")
        if distinct < count:
            line = _doubled_line(connection, name, key)
            where = f"line {line}: {key.upper()} occurs on an earlier line too ({count - distinct} such rows)"
            raise InputError(f"{tables[name].path}, {where}; remove the duplicates")
        rows[name] = count
    for (name, column), lost in CODES.items():
        with reading(tables):
            has_lost_zeros = connection.execute(f"SELECT {lost} FROM {name}").fetchall()[0][0]
        if has_lost_zeros:
            raise InputError(f"{tables[name].path}: {column.upper()} has lost the zeros at the beginning of its codes, as where "
                             f"a program read them as numbers; {FIX}")  # fmt: skip
    return rows


def _doubled_line(connection: duckdb.DuckDBPyConnection, name: str, key: str) -> int:
    seen = set()
    for line, (value,) in enumerate(connection.execute(f"SELECT {key} FROM {name}").fetchall(), start=2):
        if value in seen:
            return line
        seen.add(value)
    raise AssertionError(f"{name} has no doubled {key}")


class reading:
    """Turns an error of DuckDB about a CSV file into an InputError of one line, which does not show the row."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise InputError("the memory limit is too small for this step; raise --memory_limit") from None
        if isinstance(error, duckdb.ConversionException | duckdb.InvalidInputException | duckdb.IOException):
            message = str(error)
            paths = [table.path for table in self._tables.values() if str(table.path) in message]
            if paths:
                table = next(table for table in self._tables.values() if table.path == paths[0])
                raise InputError(f"{paths[0]}{_explained(table, message)}") from None


def _place(table: Table, column: str, problem: str) -> tuple[int | None, str]:
    """The line of the first cell of a column that has this problem, and a hint. The file is read again to find it.

    The line is None if it cannot be found.
    """
    cell = next(_column(name) for name in table.header if name.lower() == column.lower())
    right = {
        NO_WHOLE_NUMBER: f"CAST(TRY_CAST({cell} AS BIGINT) AS VARCHAR) = {cell} OR {_is_whole(cell)}",
        NO_NUMBER: _is_spelled(cell),
        NOT_FINITE: _is_number(cell),
        NO_TIME: f"isfinite(TRY_CAST({cell} AS TIMESTAMP))",
    }[problem]
    counted = f"(SELECT row_number() OVER () AS row_in_file, * FROM {table.scan({})})"
    first_wrong = _first(
        f"SELECT row_in_file, {cell} FROM {counted} WHERE {cell} IS NOT NULL AND ({right}) IS NOT true LIMIT 1"
    )
    if first_wrong is None:
        return None, ""
    row, text = first_wrong
    texts = [f"coalesce({_column(name)}, '')" for name in table.header]
    breaks = " + ".join(f"length({text}) - length(replace({text}, chr(10), ''))" for text in texts)
    within = _first(f"SELECT coalesce(sum({breaks}), 0) FROM {counted} WHERE row_in_file < {row}")
    hint = f"; a missing value must be an empty cell, not {text.strip()}" if text.strip() in MISSING else ""
    return int(row) + 1 + int(within[0] if within else 0), hint


def _first(query: str) -> tuple[Any, ...] | None:
    """The first row of a query on a file, in its order; None if there is none, or if the query fails."""
    try:
        with duckdb.connect(":memory:", config={"threads": 1}) as connection:
            return connection.execute(query).fetchone()
    except duckdb.Error:
        return None


def _column(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _explained(table: Table, message: str) -> str:
    problem = re.search(rf": (\w+) ({'|'.join(map(re.escape, (*_PROBLEMS, NOT_FINITE)))})", message)
    if problem:
        place, hint = _place(table, problem[1], problem[2])
        if problem[2] == NOT_FINITE:
            return f": {problem[1]} {NOT_FINITE}{f' (line {place})' if place else ''}; correct it or {FIX}"
        return f"{f', line {place}' if place else ''}: {problem[1]} {problem[2]}{hint}; correct it or {FIX}"
    line = re.search(r"CSV Error on Line: (\d+)", message)
    where = f", line {line[1]}" if line else ""
    column = re.search(r'Error when converting column "(\w+)".*? to \'(\w+)\'', message, re.DOTALL)
    if column:
        return f"{where}: {column[1].upper()} {NO_TIME}; correct it or {FIX}"
    columns = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if columns:
        return f"{where}: {columns[2]} columns in place of {columns[1]}; {FIX}"
    if "unterminated quote" in message:
        return f"{where}: a quote is opened and not closed; {FIX}"
    if "unicode" in message.lower() or "utf-8" in message.lower():
        return f"{where}: a text is not in UTF-8; {FIX}"
    if "state machine" in message:  # DuckDB's words for lines with different ends
        return f": some lines end with a carriage return (CRLF) and some without; give all the same end, or {FIX}"
    if "GZIP" in message or "gzip" in message:
        return f": the compressed file is cut off or damaged; {FIX}"
    return f"{where}: not a readable CSV file ({message.splitlines()[0][:120]}); {FIX}"
