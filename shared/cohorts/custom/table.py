"""Reading a registry's table, whatever wrote it."""

from __future__ import annotations

from pathlib import Path

from shared.cohorts.custom.encodings import check_encoding
from shared.cohorts.custom.packages import read_package
from shared.cohorts.tables import RawTable, read_table
from shared.errors import InputError

DATA = ("data.csv", "data.csv.gz", "data.parquet", "data.xlsx", "data.dta", "data.sas7bdat", "data.xpt")


def read_data(path: Path, *, encoding: str = "") -> RawTable:
    """The table's cells, blanks as "". `encoding` is that of its texts, where its format does not say it.

    Raises InputError naming a file that cannot be read.
    """
    check_encoding(encoding)
    if encoding and path.suffix in (".parquet", ".xlsx"):
        raise InputError(
            f"{path}: encoding = {encoding!r}: texts of {path.suffix[1:]} files are in UTF-8; leave it out"
        )
    if path.suffix in (".dta", ".sas7bdat", ".xpt"):
        return read_package(path, encoding)
    return read_table(path, errors=True, encoding=encoding)
