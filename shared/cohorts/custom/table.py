"""Reading a registry's table, whatever wrote it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shared.cohorts.tables import UNREADABLE, RawTable, read_table
from shared.errors import InputError

DATA = ("data.csv", "data.csv.gz", "data.parquet", "data.xlsx", "data.dta", "data.sas7bdat", "data.xpt")


def read_data(path: Path) -> RawTable:
    """The table's cells, blanks as "". Raises InputError naming a file that cannot be read."""
    if path.suffix not in (".dta", ".sas7bdat", ".xpt"):
        return read_table(path)
    try:
        table = pd.read_stata(path) if path.suffix == ".dta" else pd.read_sas(path, encoding="utf-8")
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable {path.suffix[1:]} file ({reason})") from None
    columns = {}
    for name in table.columns:
        values = table[name].astype(object)
        columns[str(name)] = values.where(values.notna(), "").tolist()
    return RawTable(path, columns)
