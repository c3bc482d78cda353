"""Turns the raw cells of the sepsis registry into named columns with decoded values (spec: registry, a.1, steps 1 to 16)."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
from collections.abc import Mapping
from typing import Any

from shared.cohorts.sepsis import coding
from shared.cohorts.sepsis.coding import NOT_AVAILABLE, Coding
from shared.cohorts.sepsis.reader import RawFiles
from shared.cohorts.tables import RawTable, identifiers, lower_names, plain_name
from shared.errors import InputError

SUBJECT, CENTER, BATCH = "subjectno", "center", "datano"
METADATA_COLUMNS = ("Domain", "Section", "eCRF Variable name", "Row Name", "Unit", "Range", "Decision")
ABSENT_MEANS_NO = ("liver_disease", "solid_tumor", "chronic_kidney_ds")
ERASING = "firstsourcenonsurg"
FOLLOW_UPS = {  # follow-up columns by the column they depend on: if that one is yes, a blank follow-up means no
    "bactathogenmet": ("gramposyn", "gramnegyn", "atybacyn", "bacmtyn"),
    # The original meant to fill these and erased all three (spec: registry, quirk 18).
    ERASING: ("remvinfectintravas", "inspercutdrain", "othernonsurg"),
}
DROPPED = {"tztmtime", "hosadmna", "hspt_cd"}
NAME_LIKENESS = 0.8  # two names with at least this similarity (difflib) may be one name with a typing error

Values = list[Any]


@dataclasses.dataclass
class Column:
    """One column while it is cleaned: `values` `[patients]`, None where missing; `coding` is None if it has no codes."""

    name: str
    display_name: str
    section: str
    unit: str
    coding: Coding | None
    values: Values = dataclasses.field(default_factory=list)


def clean(raw: RawFiles, *, paper: bool = False) -> tuple[list[str], list[Column], Values]:
    """Clean the registry: the patient ids, the columns to show in the order of the metadata, and the centre of each patient.

    With `paper`, blanks stay "" (only "not available" becomes None), and the three columns that the original erased are erased.
    Raises InputError if a column is missing, a code has no meaning, or an id is missing or occurs twice.
    """
    columns = read_metadata(raw.metadata, raw.dictionary)
    data = lower_names(raw.data)
    _require(raw.data, data, (SUBJECT, CENTER, BATCH))
    _split_ventilation(data)
    _fill_icu_days(data)
    pair_names(columns, data)
    for column in columns:
        column.values = data[column.name]
    columns = [column for column in columns if column.name != BATCH]
    for column in columns:
        _translate(column, raw.dictionary, paper)
    _fill_absences({column.name: column for column in columns}, paper)
    columns = [column for column in columns if not _is_dropped(column.name)]
    columns = combine_datetimes(columns)
    ids = identifiers(raw.data, next(name for name in raw.data.columns if name.lower() == SUBJECT))
    if len(set(ids)) < len(ids) or "" in ids:
        raise InputError(f"{raw.data.path}: column {SUBJECT} must have a value in every row, each different")
    centers = next(column.values for column in columns if column.name == CENTER)
    return ids, [column for column in columns if column.name not in (SUBJECT, CENTER)], centers


def read_metadata(table: RawTable, dictionary: Mapping[str, str]) -> list[Column]:
    """One column, still without values, for each row of the metadata."""
    cells = {name.strip(): values for name, values in table.columns.items()}
    _require(table, cells, METADATA_COLUMNS)
    meanings = list(cells["Range"])
    meanings[coding.DECISION_FROM_ROW :] = cells["Decision"][coding.DECISION_FROM_ROW :]
    columns = []
    for name, row_name, unit, section, meaning in zip(
        cells["eCRF Variable name"],
        cells["Row Name"],
        cells["Unit"],
        coding.headers(cells["Domain"], cells["Section"]),
        meanings,
        strict=True,
    ):
        columns.append(
            Column(
                name=plain_name(name).lower(),
                display_name=coding.display_name(str(row_name), unit),
                section=section,
                unit=coding.UNITS.get(str(unit), ""),
                coding=coding.parse_coding(meaning, dictionary),
            )
        )
    names = [column.name for column in columns]
    _require(table, names, (SUBJECT, CENTER, BATCH), "variables")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"{table.path}: these variables occur twice: {', '.join(duplicates)}")
    return columns


def pair_names(columns: list[Column], data: Mapping[str, Values]) -> None:
    """Give variables of the metadata the names of the data, where the two spell a name differently.

    Raises InputError that lists the names of both sides, unless each name has exactly one similar name on the other side.
    """
    in_metadata = {column.name for column in columns}
    only_data = [name for name in data if name not in in_metadata]
    only_metadata = [column.name for column in columns if column.name not in data]
    if not only_data and not only_metadata:
        return
    similar = {name: difflib.get_close_matches(name, only_data, n=2, cutoff=NAME_LIKENESS) for name in only_metadata}
    similar_back = {
        name: difflib.get_close_matches(name, only_metadata, n=2, cutoff=NAME_LIKENESS) for name in only_data
    }
    matched = all(len(names) == 1 and similar_back[names[0]] == [name] for name, names in similar.items())
    if not matched or len(only_data) != len(only_metadata):
        raise InputError(
            f"metadata and data name different columns, and they cannot be paired one to one: only in the metadata: "
            f"{', '.join(only_metadata) or 'none'}; only in the data: {', '.join(only_data) or 'none'}"
        )
    for column in columns:
        if column.name in similar:
            column.name = similar[column.name][0]


def _require(table: RawTable, present: Any, names: tuple[str, ...], what: str = "columns") -> None:
    missing = [name for name in names if name not in present]
    if missing:
        raise InputError(f"{table.path}: these {what} are missing: {', '.join(missing)}")


def _split_ventilation(data: dict[str, Values]) -> None:
    if "mvpat" in data and "mvnopat" in data:
        pairs = [coding.ventilation_pair(*pair) for pair in zip(data["mvpat"], data["mvnopat"], strict=True)]
        data["mvpat"] = [used for used, _ in pairs]
        data["mvnopat"] = [not_used for _, not_used in pairs]


def _fill_icu_days(data: dict[str, Values]) -> None:
    """A blank tick box of an ICU day becomes No, unless there is no record of that day."""
    for name in [name for name in data if "_icud" in name and "na_" not in name]:
        flag = data.get("na_icud" + name.split("_icud", 1)[1])
        if flag is None or len(set(data[name]) - {"", NOT_AVAILABLE}) != 1:
            continue
        pairs = zip(data[name], flag, strict=True)
        data[name] = [value if value != "" else "" if mark == NOT_AVAILABLE else "No" for value, mark in pairs]


def _translate(column: Column, dictionary: Mapping[str, str], paper: bool) -> None:
    values = column.values
    if column.coding is not None:
        values = coding.decode_column(column.name, values, column.coding)
        values = ["" if value is None else value for value in values]
    special: dict[str, str | None] = {"": "" if paper else None, NOT_AVAILABLE: None, "Yes": "yes", "No": "no"}
    translated = (dictionary.get(value, value) if isinstance(value, str) else value for value in values)
    column.values = [special.get(value, value) if isinstance(value, str) else value for value in translated]


def _fill_absences(columns: Mapping[str, Column], paper: bool = False) -> None:
    for name in ABSENT_MEANS_NO:
        if name in columns:
            columns[name].values = ["no" if value in (None, "", "None") else value for value in columns[name].values]
    follow_ups = {**FOLLOW_UPS, "bacmtyn": tuple(name for name in columns if name.startswith("bacmttyp"))}
    for condition, names in follow_ups.items():
        for name in names:
            if condition not in columns or name not in columns:
                continue
            if paper and condition == ERASING:
                columns[name].values = [None] * len(columns[name].values)
            else:
                pairs = zip(columns[name].values, columns[condition].values, strict=True)
                columns[name].values = [
                    "no" if value in (None, "") and answer == "yes" else value for value, answer in pairs
                ]


def _is_dropped(name: str) -> bool:
    return "datetime" in name or name.startswith("na_") or name in DROPPED


def combine_datetimes(columns: list[Column]) -> list[Column]:
    """Join each date column with the time column after it into one datetime column. Their display names say what they are."""
    combined: list[Column] = []
    position = 0
    while position < len(columns):
        column = columns[position]
        following = columns[position + 1] if position + 1 < len(columns) else None
        if following is not None and "date" in column.display_name.lower() and "time" in following.display_name.lower():
            values = [_datetime(column, *pair) for pair in zip(column.values, following.values, strict=True)]
            combined.append(dataclasses.replace(column, display_name=column.display_name + "time", values=values))
            position += 2
        else:
            combined.append(column)
            position += 1
    return combined


def _datetime(column: Column, date: Any, time: Any) -> datetime.datetime | None:
    if date in (None, "") or time in (None, ""):
        return None
    try:
        day = datetime.datetime.fromisoformat(date) if isinstance(date, str) else date
        moment = datetime.time.fromisoformat(time) if isinstance(time, str) else time
        if isinstance(moment, datetime.datetime):
            moment = moment.time()
        return datetime.datetime(day.year, day.month, day.day, moment.hour, moment.minute, moment.second)
    except (AttributeError, ValueError):
        raise InputError(
            f"data column {column.name}: a cell is no date, or the cell of the column after it no time of day"
        ) from None
