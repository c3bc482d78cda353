"""Files of SPSS (.sav, .zsav), with what they say about columns, values and missing values."""

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

# Formats by what their column holds: seconds since the epoch, or since midnight. Widths are not part of a name.
DATES = {"DATE", "ADATE", "EDATE", "JDATE", "SDATE"}
PERIODS = {"QYR": "quarters", "MOYR": "months", "WKYR": "weeks"}
MOMENTS = {"DATETIME", "YMDHMS"}
TIMES = {"TIME", "DTIME", "MTIME"}


def read_spss(path: Path, encoding: str) -> RawTable:
    """The table of a file of SPSS: missing values that the file declares are blank, labels of values are the cells.

    Raises InputError naming the file, and the column where one cannot be read rightly.
    """
    name = encoding or None
    try:
        # Dates are converted here: the library lets a duration of 30 hours begin again after 24.
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
    """Turn the numbers of date and time columns into such, by their formats; returns what to say about it."""
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
    made: list[datetime.datetime | None] = []
    for row, value in enumerate(values, start=1):
        try:
            made.append(None if value != value else EPOCH + _seconds(value // DAY * DAY if whole_days else value))
        except OverflowError:
            raise InputError(f"{path}: column {name}, row {row} of the table: a date beyond the year 9999") from None
    return _series(made)


def _seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(microseconds=round(value * 1e6))


def _series(values: Sequence[Any]) -> pd.Series:
    return pd.Series(list(values), dtype=object)
