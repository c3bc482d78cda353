"""The stroke registry: reads its raw files into a registry of ischaemic strokes with known outcomes (spec: registry, a.5).

Two things differ from the original on purpose (see `coding`): a missing tick box is No, and "not available" is missing.
Records of this registry have no sections.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from shared.cohorts import tables
from shared.cohorts.stroke.cleaning import Column, clean, joined
from shared.cohorts.stroke.coding import NOT_AVAILABLE
from shared.cohorts.stroke.metadata import read_metadata
from shared.cohorts.tables import RawTable
from shared.registry.build import RawColumn, RawRegistry
from shared.registry.features import Kind, as_number
from shared.registry.statistics import FEW_VALUES

REFERENCE_TIME = "arrival"
UNKNOWN = frozenset({"Not measurable", "Unknown", "Not necessary"})
FILES = {
    "data": ("data.xlsx", "data.csv"),
    "nihss": ("nihss.xlsx", "nihss.csv"),
    "additional": ("additional.xlsx", "additional.csv"),
    "metadata": ("metadata.xlsx", "metadata.csv"),
    "dictionary": ("kor_to_eng.json", "dictionary.json"),
}

_CODE = re.compile(r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?")  # a number, but no id with many digits or leading zeros


def digests(source: Path) -> dict[str, str]:
    """The checksum of each raw file in `source`, by file name. Raises InputError that lists every missing file."""
    return {path.name: tables.digest(path) for path in tables.find(source, FILES).values()}


def read_columns(source: Path, *, paper: bool = False) -> tuple[list[str], list[Column], list[str]]:
    """Read the raw files in `source`: ids, columns and notes. With `paper`, values are those of the original.

    Raises InputError that names the wrong file or column.
    """
    paths = tables.find(source, FILES)
    data, nihss, additional = (tables.read_table(paths[name]) for name in ("data", "nihss", "additional"))
    notes = [note for table in (data, nihss, additional) for note in table.notes]
    dictionary = tables.read_dictionary(paths["dictionary"])
    as_read = as_pandas_read if paper else with_numbers
    data, nihss, additional = (as_read(table) for table in (data, nihss, additional))
    ids, columns = clean(joined(data, nihss, additional), read_metadata(paths["metadata"]), dictionary, paper=paper)
    return ids, columns, [*notes, *tables.sheet_notes(paths["metadata"])]


def with_numbers(table: RawTable) -> RawTable:
    """The table with numbers in place of texts that spell numbers, so that the codes 2 and '2' are the same."""
    columns = {name: [_number(value) for value in values] for name, values in table.columns.items()}
    return dataclasses.replace(table, columns=columns)


def _number(value: Any) -> Any:
    number = _CODE.fullmatch(value.strip()) if isinstance(value, str) else None
    if number is None:
        return value
    return float(value) if number[2] else int(value)


def as_pandas_read(table: RawTable) -> RawTable:
    """The table with the number types that pandas gives: if one number of a column is a float, all its numbers are."""
    columns = {}
    for name, values in table.columns.items():
        numbers = all(isinstance(value, int | float) for value in values)
        mixed = numbers and any(isinstance(value, float) for value in values)
        columns[name] = [float(value) for value in values] if mixed else values
    return RawTable(table.path, columns)


def read(source: Path, *, cohort: str = "stroke", paper: bool = False) -> RawRegistry:
    """Read the raw files in `source`. With `paper`, values are those of the original. Raises InputError that names the fault."""
    ids, columns, notes = read_columns(source, paper=paper)
    names = {column.name for column in columns}
    roles = {"time": REFERENCE_TIME, "sex": "sex", "age": "age"}
    return RawRegistry(
        cohort=cohort,
        ids=ids,
        columns=[
            RawColumn(column.name, column.display_name, "", "", _values(column), column.coded, kind=_kind(column))
            for column in columns
        ],
        reference=REFERENCE_TIME,
        unknown=UNKNOWN,
        roles={role: name for role, name in roles.items() if name in names},
        digests=digests(source),
        notes=notes,
    )


def _values(column: Column) -> list[Any]:
    return [None if value == NOT_AVAILABLE else value for value in column.values]


def _kind(column: Column) -> Kind | None:
    if column.dated:
        return "datetime"
    texts = {value for value in column.values if value is not None and as_number(value) != as_number(value)}
    return "text" if column.free_text and len(texts) > FEW_VALUES else None
