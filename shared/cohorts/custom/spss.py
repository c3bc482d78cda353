"""Reads SPSS files (.sav, .zsav), with their labels of columns and values, and their declared missing values."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyreadstat

from shared.cohorts.custom.sas_formats import UNREADABLE
from shared.cohorts.custom.value_labels import with_labels
from shared.cohorts.tables import RawTable, plain_name, table_of
from shared.errors import InputError
from shared.registry.dates import DAY

EPOCH = datetime.datetime(1582, 10, 14)

# Names of SPSS formats, without widths. DATES, PERIODS, MOMENTS: seconds since EPOCH; TIMES: seconds since midnight.
DATES = {"DATE", "ADATE", "EDATE", "JDATE", "SDATE"}
PERIODS = {"QYR": "quarters", "MOYR": "months", "WKYR": "weeks"}
MOMENTS = {"DATETIME", "YMDHMS"}
TIMES = {"TIME", "DTIME", "MTIME"}


def read_spss(path: Path, encoding: str) -> RawTable:
    """Read an SPSS file: its table, with blanks for values that the file declares missing, and labels in place of values.

    Raises InputError that names the file, and the column if a column cannot be read correctly.
    """
    name = encoding or None
    try:
        # _convert converts dates, because the library makes 6 hours of a duration of 30 hours.
        frame, about = pyreadstat.read_sav(path, encoding=name, disable_datetime_conversion=True)
        _, declared = pyreadstat.read_sav(path, encoding=name, metadataonly=True, user_missing=True)
    except UNREADABLE as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "; --encoding names that of its texts" if "encoding" in reason or "convert" in reason else ""
        raise InputError(f"{path}: not a readable {path.suffix.lower()[1:]} file ({reason}){hint}") from None
    notes = _convert(path, frame, {name: form or "" for name, form in about.original_variable_types.items()})
    missing = [plain_name(column) for column in declared.missing_ranges]
    if missing:
        notes.append(f"{path.name}: values that the file declares missing are blank, in {', '.join(missing)}")
    labels = {column: label for column, label in about.column_names_to_labels.items() if label}
    table = table_of(path, frame, labels=labels)
    return with_labels(table, about.variable_value_labels, notes)


def _convert(path: Path, frame: Any, formats: Mapping[str, Any]) -> list[str]:
    """Turn numbers into dates and times in the columns whose SPSS format says so. Returns notes."""
    notes = []
    for place, name in enumerate(frame.columns):
        kind, values = formats[name].upper().rstrip("0123456789."), frame.iloc[:, place]
        if not pd.api.types.is_numeric_dtype(values):
            continue
        if kind in DATES | MOMENTS | set(PERIODS):
            frame.isetitem(place, _moments(path, name, values.tolist(), whole_days=kind not in MOMENTS))
            if kind in PERIODS:
                notes.append(f"{path.name}: column {name} holds {PERIODS[kind]}; each is read as its first day")
        elif kind in TIMES and not values.dropna().between(0, DAY, inclusive="left").all():
            notes.append(f"{path.name}: column {name} holds times beyond a day; they are left as seconds")
        elif kind in TIMES:
            midnight = datetime.datetime(1, 1, 1)
            frame.isetitem(
                place, _series([None if v != v else (midnight + _seconds(v)).time() for v in values.tolist()])
            )
    return notes


def _moments(path: Path, name: str, values: Sequence[float], *, whole_days: bool) -> pd.Series:
    moments: list[datetime.datetime | None] = []
    for row, value in enumerate(values, start=1):
        try:
            moments.append(None if value != value else EPOCH + _seconds(value // DAY * DAY if whole_days else value))
        except OverflowError:
            raise InputError(f"{path}: column {name}, row {row} of the table: a date beyond the year 9999") from None
    return _series(moments)


def _seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(microseconds=round(value * 1e6))


def _series(values: Sequence[Any]) -> pd.Series:
    return pd.Series(list(values), dtype=object)
