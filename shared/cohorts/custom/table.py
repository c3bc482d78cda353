"""Finds the files of a custom registry in a folder, and reads its table in any supported format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from shared.cohorts import tables
from shared.cohorts.custom.decimals import NAMED, decimal_mark
from shared.cohorts.custom.delimited import ENDINGS, Form, read_delimited
from shared.cohorts.custom.encodings import check_encoding
from shared.cohorts.custom.packages import read_package
from shared.cohorts.custom.spss import read_spss
from shared.cohorts.headers import check_header
from shared.cohorts.tables import RawTable
from shared.errors import InputError

WORKBOOKS = (".xlsx", ".xls")
SPSS = (".sav", ".zsav")
PACKAGES = (".dta", ".sas7bdat", ".xpt")
CATALOGUE = ".sas7bcat"
DATA = tuple(f"data{ending}" for ending in (*ENDINGS, ".csv.gz", ".parquet", *WORKBOOKS, *SPSS, *PACKAGES))
CODEBOOKS = tuple(f"codebook{ending}" for ending in (".csv", *WORKBOOKS, ".tsv", ".txt"))


@dataclasses.dataclass(frozen=True)
class Files:
    """The files in a folder: a table, a codebook, and for SAS perhaps a catalogue with labels of values."""

    data: Path
    codebook: Path | None
    catalogue: Path | None

    @property
    def all(self) -> list[Path]:
        """The files that exist."""
        return [path for path in (self.data, self.codebook, self.catalogue) if path]


def find_files(source: Path) -> Files:
    """Find the files of a registry; upper and lower case in names are the same.

    Raises InputError if there is no table, or several files for the same purpose.
    """
    tables.check_folder(source, DATA[0])
    paths = sorted(path for path in source.iterdir() if path.is_file())
    data = _one(source, paths, DATA)
    if data is None:
        others = [path.name for path in paths if path.name.lower().endswith(tuple(name[4:] for name in DATA))]
        hint = f"; there is {', '.join(others[:3])}: name the table data and keep its ending" if others else ""
        raise InputError(f"{source}: missing {' or '.join(DATA)}{hint}")
    catalogues = [path for path in paths if path.suffix.lower() == CATALOGUE]
    if len(catalogues) > 1:
        raise InputError(
            f"{source}: holds {' and '.join(path.name for path in catalogues)}; leave the one that is meant"
        )
    is_sas = data.suffix.lower() in (".sas7bdat", ".xpt")
    return Files(data, _one(source, paths, CODEBOOKS), catalogues[0] if catalogues and is_sas else None)


def _one(source: Path, paths: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The only one of `paths` with one of these names, or None. Raises InputError if there are several."""
    matches = [path for path in paths if path.name.lower() in names]
    if len(matches) > 1:
        raise InputError(f"{source}: holds {' and '.join(path.name for path in matches)}; leave the one that is meant")
    return matches[0] if matches else None


def read_data(
    path: Path, *, encoding: str = "", delimiter: str = "", decimal: str = "", catalogue: Path | None = None
) -> RawTable:
    """Read a table of any supported format; a blank cell is "".

    `encoding`, `delimiter` and `decimal` say how the file is written, for formats that do not state it. What is "" is
    recognised, and a note says how the file was read. `catalogue` is a file with the labels of the values of a SAS table.
    Raises InputError that names the file if it cannot be read.
    """
    check_encoding(encoding)
    form, kind = Form(encoding, delimiter, decimal), tables.suffix(path)
    if encoding and kind in (".parquet", *WORKBOOKS):
        raise InputError(f"{path}: encoding = {encoding!r}: texts of {kind[1:]} files are in UTF-8; leave it out")
    if delimiter and kind not in ENDINGS:
        raise InputError(f"{path}: delimiter = {delimiter!r}: a {kind[1:]} file needs no separator; leave it out")
    table = _with_mark(_read(path, kind, form, catalogue), form, recognise=kind in ENDINGS)
    if not table.columns:
        raise InputError(f"{path}: has no column")
    return table


def _read(path: Path, kind: str, form: Form, catalogue: Path | None) -> RawTable:
    if kind in SPSS:
        return read_spss(path, form.encoding)
    if kind in PACKAGES:
        return read_package(path, form.encoding, catalogue)
    if kind in WORKBOOKS:
        where, rows, notes = tables.workbook_rows(path)
        tables.check_cells(where, rows, errors=True)
        first = 1
    elif kind in ENDINGS:
        where, (rows, first, notes) = str(path), read_delimited(path, form)
    else:
        return tables.read_table(path)
    check_header(where, rows)
    return tables.table_of_rows(path, rows, where=where, notes=notes, first=first)


def _with_mark(table: RawTable, form: Form, *, recognise: bool) -> RawTable:
    """The table with its decimal mark, which is given, or is recognised if `recognise` is true."""
    if form.mark or not recognise:
        return dataclasses.replace(table, decimal=form.mark or ".")
    mark, with_commas, undecided = decimal_mark(table.columns)
    if not with_commas:
        places = {name: table.number(row) for name, row in undecided.items()}
        return dataclasses.replace(table, decimal=mark, undecided=places)
    names = ", ".join(with_commas[:NAMED]) + (" ..." if len(with_commas) > NAMED else "")
    note = f"{table.path.name}: numbers have decimal commas (in {names}); --decimal=. reads decimal points"
    return dataclasses.replace(table, decimal=mark, notes=[*table.notes, note])


def check_decided(table: RawTable, columns: Sequence[str]) -> None:
    """Raise InputError if a comma in one of these columns of numbers may be a decimal comma or a separator of thousands."""
    name = next((name for name in columns if name in table.undecided), None)
    if name is not None:
        raise InputError(
            f"{table.path}: column {name}, row {table.undecided[name]}: numbers such as 1,234 may have a decimal comma or a mark "
            f"of thousands; give --decimal=, for decimal commas, else write them without marks of thousands"
        )
