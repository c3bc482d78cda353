"""The stroke registry: four raw files to a registry of ischaemic strokes with known outcomes (spec: registry, a.5).

What differs from the original on purpose is in `coding`: a missing tick box is No, and "not available" is missing.
Records have no sections here.
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

_CODE = re.compile(r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?")  # neither an id of many digits nor one with zeros before it


def digests(source: Path) -> dict[str, str]:
    """Digest of each raw file in `source`, by its name."""
    return {path.name: tables.digest(path) for path in tables.find(source, FILES).values()}


def read_columns(source: Path, *, paper: bool = False) -> tuple[list[str], list[Column], list[str]]:
    """Ids, columns and notes from the raw files in `source`. Raises InputError naming the file or the column that is wrong."""
    found = tables.find(source, FILES)
    data, nihss, additional = (tables.read_table(found[name]) for name in ("data", "nihss", "additional"))
    notes = [note for table in (data, nihss, additional) for note in table.notes]
    dictionary = tables.read_dictionary(found["dictionary"])
    as_read = as_pandas_read if paper else with_numbers
    data, nihss, additional = (as_read(table) for table in (data, nihss, additional))
    ids, columns = clean(joined(data, nihss, additional), read_metadata(found["metadata"]), dictionary, paper=paper)
    return ids, columns, [*notes, *tables.sheet_notes(found["metadata"])]


def with_numbers(table: RawTable) -> RawTable:
    """The table with numbers for texts that spell them, as in CSV files: a code of 2 must be the same as one of '2'."""
    columns = {name: [_number(value) for value in values] for name, values in table.columns.items()}
    return dataclasses.replace(table, columns=columns)


def _number(value: Any) -> Any:
    spelled = _CODE.fullmatch(value.strip()) if isinstance(value, str) else None
    return value if spelled is None else float(value) if spelled[2] else int(value)


def as_pandas_read(table: RawTable) -> RawTable:
    """The table with the number types that pandas gives a column: one fraction makes all its whole numbers floats."""
    columns = {}
    for name, values in table.columns.items():
        numbers = all(isinstance(value, int | float) for value in values)
        mixed = numbers and any(isinstance(value, float) for value in values)
        columns[name] = [float(value) for value in values] if mixed else values
    return RawTable(table.path, columns)


def read(source: Path, *, cohort: str = "stroke", paper: bool = False) -> RawRegistry:
    """Read the raw files in `source`; `paper` gives the original's values. Raises InputError naming what is wrong."""
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
