"""Reads files of Stata (.dta) and SAS (.sas7bdat, .xpt), with their labels of columns and of values."""

from __future__ import annotations

import datetime
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shared.cohorts.custom.encodings import RAW, decoder
from shared.cohorts.custom.sas_formats import DATES, MOMENTS, TIMES, base_of, meanings_of
from shared.cohorts.custom.value_labels import with_labels
from shared.cohorts.private_pandas import set_stata_formats, stata_columns
from shared.cohorts.tables import RawTable, table_of
from shared.errors import InputError
from shared.registry.dates import DAY

# The exceptions that pandas raises for a file that is damaged, or of another kind than its name says.
UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, EOFError, struct.error, zlib.error,
)  # fmt: skip
EPOCH = datetime.datetime(1960, 1, 1)  # Stata and SAS both count dates from here
SMALLEST = (
    1e-70  # smaller numbers are 0: pandas reads a 0 of a SAS transport file as 5.4e-79, which no such file can hold
)
RECORD = 80  # bytes of a record of a transport file
MEMBER = b"HEADER RECORD*******MEMBER  HEADER RECORD!!!!!!!"
VERSION_8 = b"HEADER RECORD*******LIBV8   HEADER RECORD!!!!!!!"
PERIODS = {"tw": "weeks", "tm": "months", "tq": "quarters", "th": "half-years", "ty": "years"}


def read_package(path: Path, encoding: str, catalogue: Path | None = None) -> RawTable:
    """Read a Stata or SAS file: its table, with the labels of values in place of the values, if the file has labels.

    `catalogue` is the file (.sas7bcat) with the labels of a SAS file. Raises InputError that names the file, and the column if a
    column cannot be read correctly.
    """
    kind = path.suffix.lower()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnicodeWarning)
            warnings.filterwarnings("ignore", "xport file may be corrupted")  # _transport raises InputError for it
            if kind == ".dta":
                return _stata(path, encoding)
            return (_transport if kind == ".xpt" else _sas)(path, encoding, catalogue)
    except InputError:
        raise
    except UnicodeWarning:
        raise InputError(f"{path}: some texts are not in UTF-8, as this version of Stata has them; translate the file in Stata "
                         f"(unicode translate) and save it again") from None  # fmt: skip
    except (UnicodeDecodeError, *UNREADABLE) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path}: not a readable {kind[1:]} file ({reason})") from None


def _stata(path: Path, encoding: str) -> RawTable:
    with pd.read_stata(path, iterator=True) as opened:
        reader: Any = opened
        about = dict(reader.variable_labels())
        columns, formats, labels, version = stata_columns(reader)
        kinds = [name.replace("%-", "%") for name in formats]
        set_stata_formats(
            reader, kinds
        )  # without the "-" of left-aligned formats, which make pandas read dates as numbers
        for name, kind in zip(columns, kinds, strict=True):
            if kind.startswith(("%tC", "%tb")):
                raise InputError(
                    f"{path}: column {name} has Stata's format {kind[:3]}, which is not read; make it %td or %tc in Stata"
                )
        frame = reader.read(convert_categoricals=False)
        stored = reader.value_labels()
        meanings = {name: stored[label] for name, label in zip(columns, labels, strict=True) if label in stored}
    notes = [
        f"{path.name}: column {name} holds {PERIODS[kind[1:3]]}; each is read as its first day"
        for name, kind in zip(columns, kinds, strict=True)
        if kind[1:3] in PERIODS
    ]
    if version >= 118:
        if encoding:
            raise InputError(
                f"{path}: encoding = {encoding!r}: this version of Stata's files is in UTF-8; leave it out"
            )
        return with_labels(table_of(path, frame, labels=about), meanings, notes)
    return _decoded(path, frame, about, encoding, notes, meanings)


def _transport(path: Path, encoding: str, catalogue: Path | None) -> RawTable:
    content = path.read_bytes()
    if content.startswith(VERSION_8):
        raise InputError(
            f"{path}: a SAS transport file of version 8; write it as version 5 (the XPORT engine), or as CSV"
        )
    if content.count(MEMBER) > 1:
        raise InputError(
            f"{path}: holds {content.count(MEMBER)} tables; write the one that is meant to a file of its own"
        )
    with pd.read_sas(path, format="xport", encoding=RAW, iterator=True) as opened:
        reader: Any = opened
        if len(content) % RECORD:
            raise InputError(
                f"{path}: is cut off: {len(content):,} bytes are no whole number of records of {RECORD}; copy it again"
            )
        reader.nobs = _transport_rows(content, reader)
        names = [str(name) for name in reader.columns]
        frame: Any = reader.read() if reader.nobs else pd.DataFrame(columns=names)
        fields = reader.fields
    for place, field in enumerate(fields):
        if field["ntype"] == "numeric":
            values = frame.iloc[:, place].astype("float64")
            frame.isetitem(place, values.mask(values.abs() < SMALLEST, 0.0))
    formats = [field["nform"].decode(RAW) for field in fields]
    notes = _convert(path, frame, formats)
    about = {name: field["label"].decode(RAW) for name, field in zip(names, fields, strict=True)}
    meanings, unknown = meanings_of(path, dict(zip(names, formats, strict=True)), catalogue, encoding)
    return _decoded(path, frame, about, encoding, [*notes, *unknown], meanings, labels_are_raw=False)


def _transport_rows(content: bytes, reader: Any) -> int:
    """The number of rows of a transport file. The last record is filled up with blanks, which are not rows."""
    rows = content[reader.record_start :]
    count, length = len(rows) // reader.record_length, reader.record_length
    while count and not rows[(count - 1) * length : count * length].strip(b" "):
        count -= 1
    return count


def _sas(path: Path, encoding: str, catalogue: Path | None) -> RawTable:
    with pd.read_sas(path, format="sas7bdat", encoding="infer", iterator=True) as opened:
        reader: Any = opened
        states_encoding = not reader.inferred_encoding.startswith("unknown")
        if encoding or not states_encoding:
            reader.encoding = RAW
        reader.convert_dates = False  # _convert does it for both kinds of SAS files
        about = {str(column.name): str(column.label) for column in reader.columns}
        formats = [str(column.format) for column in reader.columns]
        frame = reader.read()
    notes = _convert(path, frame, formats)
    names = [str(name) for name in frame.columns]
    meanings, unknown = meanings_of(path, dict(zip(names, formats, strict=True)), catalogue, encoding)
    if states_encoding and not encoding:
        return with_labels(table_of(path, frame, labels=about), meanings, [*notes, *unknown])
    return _decoded(path, frame, about, encoding, [*notes, *unknown], meanings, labels_are_raw=False)


def _convert(path: Path, frame: Any, formats: Sequence[str]) -> list[str]:
    """Turn numbers into dates and times in the columns whose SAS format says so. Returns notes."""
    notes = []
    for place, form in enumerate(formats):
        name, values = frame.columns[place], frame.iloc[:, place]
        kind = base_of(form)
        if not pd.api.types.is_numeric_dtype(values):
            continue
        if kind in TIMES and not values.dropna().between(0, DAY, inclusive="left").all():
            notes.append(f"{path.name}: column {name} holds times beyond a day; they are left as seconds")
        elif kind in TIMES:
            frame.isetitem(place, _converted(path, name, values, lambda value: (EPOCH + _seconds(value)).time()))
        elif kind in DATES:
            frame.isetitem(
                place, _converted(path, name, values, lambda value: EPOCH + datetime.timedelta(days=value // 1))
            )
        elif kind in MOMENTS:
            frame.isetitem(place, _converted(path, name, values, lambda value: EPOCH + _seconds(value)))
    return notes


def _seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(microseconds=round(value * 1e6))


def _converted(path: Path, name: Any, values: pd.Series, convert: Callable[[float], Any]) -> pd.Series:
    converted = []
    for row, value in enumerate(values.tolist(), start=1):
        try:
            converted.append(None if value != value else convert(value))
        except OverflowError:
            raise InputError(f"{path}: column {name}, row {row} of the table: a date beyond the year 9999") from None
    return pd.Series(converted, index=values.index, dtype=object)


def _decoded(
    path: Path,
    frame: Any,
    about: Mapping[str, str],
    encoding: str,
    notes: Sequence[str],
    meanings: Mapping[str, Mapping[Any, str]],
    *,
    labels_are_raw: bool = True,
) -> RawTable:
    """The table with its names, texts and labels decoded; they were read as `RAW`, one letter for each byte.

    `labels_are_raw` says whether the labels of values in `meanings` need decoding too.
    """
    names = [str(name) for name in frame.columns]
    texts = {place: frame.iloc[:, place].tolist() for place in range(len(names)) if not _is_plain(frame.iloc[:, place])}
    cells = (cell for values in texts.values() for cell in values if isinstance(cell, str))
    labels = [label for by_code in meanings.values() for label in by_code.values()] if labels_are_raw else []
    decode, encoding_notes = decoder(path, [*names, *about.values(), *labels, *cells], encoding)
    decode_label = decode if labels_are_raw else str
    decoded_meanings = {
        decode(name): {code: decode_label(label) for code, label in by_code.items()}
        for name, by_code in meanings.items()
    }
    for place, values in texts.items():
        decoded = [decode(cell) if isinstance(cell, str) else cell for cell in values]
        frame.isetitem(place, pd.Series(decoded, index=frame.index, dtype=object))
    frame.columns = pd.Index([decode(name) for name in names])
    table = table_of(path, frame, labels={decode(name): decode(label) for name, label in about.items()})
    return with_labels(table, decoded_meanings, [*notes, *encoding_notes])


def _is_plain(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)
