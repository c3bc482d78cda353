"""The CSV files as PhysioNet ships them: found, their headers checked, digested, and shown to DuckDB as views."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import duckdb
from tqdm import tqdm

from shared import files
from shared.errors import InputError

# Columns used, with their types. Codes and free values are texts: leading zeros count.
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
DEMO_PATIENTS = 100  # the public demo of MIMIC-III has exactly this many
MIMIC_IV_COLUMNS = {"stay_id", "anchor_age", "anchor_year"}
MIMIC_IV_FILES = {"hosp", "icu", "inputevents.csv", "inputevents.csv.gz"}
NOT_FINITE = "holds a number that is not finite"
FIX = "download it again from PhysioNet"


@dataclasses.dataclass(frozen=True)
class Table:
    """One CSV file: its header as written, in the file's order."""

    name: str
    path: Path
    header: tuple[str, ...]


def find(source: Path) -> dict[str, Table]:
    """The twelve tables used, by lower-case name, from NAME.csv or NAME.csv.gz in either case, headers checked.

    Raises InputError listing every file that is missing, naming a missing column, two files for one table, or saying
    that the folder holds MIMIC-IV.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; --source is the folder with MIMIC-III's CSV files")
    entries = sorted(source.iterdir())
    paths = {name: [p for p in entries if p.name.lower() in (f"{name}.csv", f"{name}.csv.gz")] for name in TABLES}
    missing = [f"{name.upper()}.csv[.gz]" for name, found in paths.items() if not found]
    if missing:
        _refuse_mimic_iv(source, bool({p.name.lower() for p in entries} & MIMIC_IV_FILES))
        raise InputError(f"{source}: missing {', '.join(missing)}; get MIMIC-III v1.4 from PhysioNet")
    for found in paths.values():
        if len(found) > 1:
            raise InputError(f"{source}: both {found[0].name} and {found[1].name} are there; keep one of them")
    return {name: _table(name, found[0]) for name, found in paths.items()}


def _refuse_mimic_iv(source: Path, found: bool) -> None:
    if found:
        raise InputError(f"{source}: these are MIMIC-IV's files; this cohort is made from MIMIC-III v1.4")


def _table(name: str, path: Path) -> Table:
    header = _header(path)
    if not header:
        raise InputError(f"{path}: the file is empty; {FIX}")
    lower = [column.lower() for column in header]
    _refuse_mimic_iv(path, bool(MIMIC_IV_COLUMNS & set(lower)))
    missing = [column.upper() for column in TABLES[name] if column not in lower]
    if len(header) == 1 and missing:
        raise InputError(f"{path}: line 1 is one column only; columns must be separated by commas")
    if missing:
        raise InputError(f"{path}: line 1 lacks {', '.join(missing)}; this is not MIMIC-III v1.4's {name.upper()}")
    twice = sorted({column for column in lower if lower.count(column) > 1})
    if twice:
        raise InputError(f"{path}: line 1 has the column {twice[0].upper()} twice; {FIX}")
    return Table(name, path, tuple(header))


def _header(path: Path) -> list[str]:
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader([stream.readline()]), [])
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {FIX}") from None


def digests(tables: Mapping[str, Table], record: Path, *, progress: bool = False) -> dict[str, str]:
    """BLAKE2b digest of each file, by file name.

    `record` keeps them with size and time of change, so that tens of gigabytes are not read again by every start.
    """
    known = files.read_json_object(record) if record.is_file() else {}
    result = {}
    for table in tqdm(tables.values(), desc="digests of the files", unit=" files", disable=not progress):
        status = table.path.stat()
        stamp = [str(table.path.resolve()), status.st_size, status.st_mtime_ns]
        entry = known.get(table.name, {})
        if entry.get("stamp") != stamp:
            with table.path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            known[table.name] = {"stamp": stamp, "digest": digest}
            files.write_json(record, known)
        result[table.path.name] = known[table.name]["digest"]
    return result


def make_views(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Table]) -> None:
    """One view for each table, of the columns used, under lower-case names.

    A quoted empty text is a text, an empty cell is missing. Columns that no query asks for are never converted. DuckDB takes
    `nan` and `inf` for numbers; here they end the query.
    """
    for table in tables.values():
        used = TABLES[table.name]
        types = ", ".join(f"{_quoted(column)}: '{used.get(column.lower(), 'VARCHAR')}'" for column in table.header)
        names = ", ".join(_read_as(table, column) for column in table.header if column.lower() in used)
        connection.execute(
            f"CREATE VIEW {table.name} AS SELECT {names} FROM read_csv({_quoted(str(table.path))}, header = true, "
            f"auto_detect = false, delim = ',', quote = '\"', escape = '\"', allow_quoted_nulls = false, "
            f"compression = '{'gzip' if table.path.suffix.lower() == '.gz' else 'none'}', columns = {{{types}}})"
        )


def _read_as(table: Table, column: str) -> str:
    name = column.lower()
    if TABLES[table.name][name] != "DOUBLE":
        return f'"{column}" AS {name}'
    message = _quoted(f"{table.path}: {name.upper()} {NOT_FINITE}")
    return f'CASE WHEN isfinite("{column}") IS NOT false THEN "{column}" ELSE error({message}) END AS {name}'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def check_keys(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Table]) -> dict[str, int]:
    """Rows of the three small tables that everything is joined to. Raises InputError where a key is missing or doubled.

    A doubled stay would count its patient twice, and which of its rows is right cannot be known.
    """
    rows = {}
    for name, key in UNIQUE.items():
        query = f"SELECT count(*), count({key}), count(DISTINCT {key}) FROM {name}"
        with reading(tables):
            count, known, distinct = connection.execute(query).fetchall()[0]
        if known < count:
            raise InputError(f"{tables[name].path}: {key.upper()} is missing in {count - known} rows; {FIX}")
        if distinct < count:
            line = _doubled_line(connection, name, key)
            where = f"line {line}: {key.upper()} occurs on an earlier line too ({count - distinct} such rows)"
            raise InputError(f"{tables[name].path}, {where}; remove the duplicates")
        rows[name] = count
    return rows


def _doubled_line(connection: duckdb.DuckDBPyConnection, name: str, key: str) -> int:
    seen = set()
    for line, (value,) in enumerate(connection.execute(f"SELECT {key} FROM {name}").fetchall(), start=2):
        if value in seen:
            return line
        seen.add(value)
    raise AssertionError(f"{name} has no doubled {key}")


class reading:
    """Turns what DuckDB says about a CSV file into an InputError of one line, without the row's contents."""

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
                raise InputError(f"{paths[0]}{_explained(message)}") from None


def _explained(message: str) -> str:
    if NOT_FINITE in message:
        return f": {message.partition(NOT_FINITE)[0].split()[-1]} {NOT_FINITE}; correct it or {FIX}"
    line = re.search(r"CSV Error on Line: (\d+)", message)
    where = f", line {line[1]}" if line else ""
    column = re.search(r'Error when converting column "(\w+)".*? to \'(\w+)\'', message, re.DOTALL)
    if column:
        kind = {"TIMESTAMP": "a time (YYYY-MM-DD HH:MM:SS)", "DOUBLE": "a number"}.get(column[2], "a whole number")
        return f"{where}: {column[1].upper()} is not {kind}; correct it or {FIX}"
    columns = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if columns:
        return f"{where}: {columns[2]} columns in place of {columns[1]}; {FIX}"
    if "unterminated quote" in message:
        return f"{where}: a quote is opened and not closed; {FIX}"
    if "unicode" in message.lower() or "utf-8" in message.lower():
        return f"{where}: a text is not in UTF-8; {FIX}"
    if "GZIP" in message or "gzip" in message:
        return f": the compressed file is cut off or damaged; {FIX}"
    return f"{where}: not a readable CSV file ({message.splitlines()[0][:120]}); {FIX}"
