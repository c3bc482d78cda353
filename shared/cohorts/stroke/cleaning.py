"""Joins the tables of the stroke registry, and turns their cells into named columns with decoded values (spec: registry, a.5)."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.cohorts.stroke import coding
from shared.cohorts.stroke.coding import NOT_AVAILABLE
from shared.cohorts.stroke.metadata import Field
from shared.cohorts.tables import RawTable, identifiers, lower_names, shown_code
from shared.errors import InputError

ID, ADDITIONAL_ID = "고유번호", "uni_num"
EDUCATION = ("edu1", "edu2")
NEEDED = ("edu1", "edu2", "ind_str", "3m_d", "dis_d", "cum_mve_1y", "cum_mve_1y_d", "mrs3mo", "arrival")
IDENTIFYING = ("trans_sub_1", "dis_sub_1", "ev1_hosw_3m", "ev1_hosw_1y", "comment")
UNDECODED = ("end1_memo", "end2_memo", "end3_memo", "psce1_12_ow")
OTHER_SOURCE = "psce1_12_ow"
OTHER_SOURCE_NAME = "Potential Source of Cardioembolism/High Risk/Others Text"
HEMORRHAGE, MRS_UNKNOWN = 2, 9
FREE_TEXT = {"cc", "image_nw", "in_txt", "comment", "drug_stop_w", "ev1_odw_3m", "ev1_hosw_3m", "ev1_odw_1y",
             "ev1_hosw_1y", "trans_sub_1", "dis_sub_1"}  # fmt: skip

_HANGUL = re.compile(r"[가-힣]")
Values = list[Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: `values` `[patients]`, None where missing; `coded` are all labels of its code table, None if it has none."""

    name: str
    display_name: str
    values: Values
    coded: tuple[str, ...] | None
    dated: bool
    free_text: bool


def is_free_text(name: str) -> bool:
    """Whether the name of a column is one of a free text."""
    return "_ow" in name or name.endswith("_nw") or name in FREE_TEXT


def joined(data: RawTable, nihss: RawTable, additional: RawTable) -> dict[str, Values]:
    """Join the three tables by patient: their columns by name in lower case.

    A cell is None if the patient is not in that table. Raises InputError if an id or a column name occurs twice, a table has no
    patient in common with `data`, or a needed column is missing.
    """
    ids = _ids(data, ID)
    if len(set(ids)) < len(ids) or "" in ids:
        raise InputError(f"{data.path}: column {ID} must have a value in every row, each different")
    columns = {**lower_names(data), ID.lower(): ids}
    for table, key in ((nihss, ID), (additional, ADDITIONAL_ID)):
        other_ids = _ids(table, key)
        if len(set(other_ids)) < len(other_ids):
            raise InputError(f"{table.path}: a value of column {key} comes more than once")
        row_of_id = {identifier: row for row, identifier in enumerate(other_ids)}
        if row_of_id and not set(row_of_id) & set(ids):
            raise InputError(f"{table.path}: no value of column {key} is one of column {ID} in {data.path.name}")
        for name, values in lower_names(table).items():
            if name == key.lower():
                continue
            if name in columns:
                raise InputError(f"{table.path}: column {name} is also in {data.path.name}; remove one of them")
            columns[name] = [values[row_of_id[identifier]] if identifier in row_of_id else None for identifier in ids]
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InputError(f"{data.path}: these columns are missing, here and in what is joined: {', '.join(missing)}")
    return columns


def _ids(table: RawTable, name: str) -> list[str]:
    if name not in table.columns:
        raise InputError(f"{table.path}: these columns are missing: {name}")
    return identifiers(table, name)


def clean(
    columns: Mapping[str, Values], fields: Sequence[Field], dictionary: Mapping[str, str], *, paper: bool = False
) -> tuple[list[str], list[Column]]:
    """Clean the registry: the ids of the patients in the cohort, and the columns to show, in the order of the data.

    With `paper`, values are those of the original. Raises InputError if a code has no meaning, or a date cannot be read.
    """
    field_of = {field.name: field for field in fields if field.name not in EDUCATION}
    absent = sorted(set(field_of) - set(columns))
    if absent:
        raise InputError(f"the metadata names columns that no data file has: {', '.join(absent)}")
    dates = {name: _dates(name, columns[name]) for name in columns if name in field_of and field_of[name].dated}
    in_cohort = _cohort(columns, dates)
    data = {name: [values[row] for row in in_cohort] for name, values in columns.items()}
    dates = {name: [values[row] for row in in_cohort] for name, values in dates.items()}
    _clear_vessels(data, field_of)
    cleaned = []
    for name, values in data.items():
        if name == EDUCATION[0]:
            cleaned.append(_education(values, data[EDUCATION[1]], paper))
        elif name in field_of and name not in IDENTIFYING:
            field = field_of[name]
            decoded: Values = dates[name] if field.dated else _decoded(field, values, dictionary, paper)
            cleaned.append(_shown(field, decoded, paper))
    return data[ID.lower()], cleaned


def _decoded(field: Field, values: Values, dictionary: Mapping[str, str], paper: bool) -> Values:
    if field.name in UNDECODED:
        return [None if value in ("", None) else value for value in values]
    hangul = {word: english for word, english in dictionary.items() if _HANGUL.search(word)}
    return coding.decode_column(field.name, values, field.coding, hangul, paper=paper)


def _shown(field: Field, values: Values, paper: bool) -> Column:
    coded: tuple[str, ...] | None = None
    if field.name in coding.TICKS:
        coded = ("No", "Yes")
    elif field.coding is not None and set(field.coding.values()) != {NOT_AVAILABLE}:
        coded = tuple(label for label in dict.fromkeys(field.coding.values()) if label != NOT_AVAILABLE)
        coded = ("No", *coded) if coded == ("Yes",) else coded
    if not paper:
        values = [None if value == NOT_AVAILABLE else value for value in values]
    name = OTHER_SOURCE_NAME if field.name == OTHER_SOURCE else field.display_name
    return Column(field.name, name, values, coded, field.dated, is_free_text(field.name))


def _education(levels: Values, years: Values, paper: bool) -> Column:
    try:
        values = [coding.education(level, year) for level, year in zip(levels, years, strict=True)]
    except coding.UnknownCode as error:
        raise InputError(f"data columns edu1, edu2: codes {shown_code(error)} have no meaning") from None
    if not paper:
        values = [None if value == NOT_AVAILABLE else value for value in values]
    coded = ("illiterate/uneducated", "uneducated", *coding.EDUCATION.values())
    return Column("edu", "Education", values, coded, dated=False, free_text=False)


def _dates(name: str, values: Values) -> Values:
    dates: Values = []
    for row, value in enumerate(values, start=2):
        if value is None or value == "":
            dates.append(None)
        elif isinstance(value, datetime.datetime):
            dates.append(value)
        else:
            try:
                dates.append(datetime.datetime.fromisoformat(str(value)))
            except ValueError:
                raise InputError(f"data column {name}, row {row}: the cell is no date") from None
    return dates


def _cohort(columns: Mapping[str, Values], dates: Mapping[str, Values]) -> list[int]:
    """The rows of ischaemic strokes whose two outcomes are known and come after discharge."""
    needed = ("3m_d", "dis_d", "cum_mve_1y_d")
    date_of = {name: dates[name] if name in dates else _dates(name, columns[name]) for name in needed}
    in_cohort = []
    for row, (kind, mrs, mace) in enumerate(
        zip(columns["ind_str"], columns["mrs3mo"], columns["cum_mve_1y"], strict=True)
    ):
        discharge, visit, event = (date_of[name][row] for name in ("dis_d", "3m_d", "cum_mve_1y_d"))
        known_outcomes = mrs not in ("", None, MRS_UNKNOWN) and mace not in ("", None)
        in_order = discharge is not None and visit is not None and discharge < visit
        before_event = event is None or (discharge is not None and discharge < event)
        if kind != HEMORRHAGE and known_outcomes and in_order and before_event:
            in_cohort.append(row)
    return in_cohort


def _clear_vessels(data: dict[str, Values], field_of: Mapping[str, Field]) -> None:
    """Clear the side and the degree of stenosis of each vessel that is not symptomatic."""
    for name in [name.removesuffix("_c") for name in field_of if name.startswith("a_") and name.endswith("_c")]:
        columns = [part for part in (name, f"{name}_c", f"{name}_s") if part in data]
        if len(columns) < 3:
            continue
        cleared = [symptomatic == 0 and symptomatic != "" for symptomatic in data[f"{name}_s"]]
        for part, value in zip(columns, (0, None, None), strict=True):
            data[part] = [value if clear else cell for cell, clear in zip(data[part], cleared, strict=True)]
