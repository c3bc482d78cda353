"""The intermediate data of the original: its tables after writing and reading CSV, and its distributions (spec: registry, a).

In the original the type of a value depends on how pandas reads the column, and questions show it: `63.0` if the column has a
blank cell. So the tables are written to CSV and read again here too, in memory.
"""

from __future__ import annotations

import datetime
import io
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shared.paper.draws import SEED
from shared.paper.records import ID
from shared.paper.values import Choices
from shared.registry.statistics import FEW_VALUES, fit_mixture

AKI_FEW_VALUES = 3


def tables(
    ids: Sequence[Any], columns: Mapping[str, Sequence[Any]], *, valid_patients: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training and the validation table (spec: registry, a.1, 16). The ids are in the column `Unique ID`."""
    table = pd.DataFrame({ID: list(ids)} | {name: _written(typed(values)) for name, values in columns.items()})
    order = np.random.RandomState(SEED).permutation(len(table))
    return through_csv(table.iloc[order[valid_patients:]]), through_csv(table.iloc[order[:valid_patients]])


def _written(column: pd.Series) -> pd.Series:
    """The column with times as pandas writes them: only the date if all are at midnight, milliseconds only if some have them."""
    times = [value for value in column if isinstance(value, datetime.datetime)]
    if not times:
        return column
    form = "%Y-%m-%d" if all(time.time() == datetime.time() for time in times) else "%Y-%m-%d %H:%M:%S"
    fraction = any(time.microsecond for time in times)

    def text(value: Any) -> Any:
        if not isinstance(value, datetime.datetime):
            return value
        return value.strftime(form) + (f".{value.microsecond // 1000:03d}" if fraction else "")

    return column.map(text)


def through_csv(table: pd.DataFrame) -> pd.DataFrame:
    """The table after it is written to CSV and read again with the default settings of pandas.

    Pandas reads a long table in parts, and finds the types of each part separately. If a column of numbers also has texts, `170`
    stays a text in the parts with such a text, and is the number `170.0` in the others. The original's records show both.
    """
    text = io.StringIO(table.to_csv(index=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        return pd.read_csv(text)


def blanks(values: Sequence[Any]) -> list[Any]:
    """The values with the types that pandas gives them (see `typed`); "" where one is missing."""
    return ["" if value is None or value != value else value for value in typed(values).tolist()]


def text_count(column: pd.Series) -> int:
    """The number of distinct values of a column that are not numbers; dates count too."""
    keys = {_key(value) for value in column if value is not None and value == value}
    return len([key for key in keys if key != "" and _number(key) is None])


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each a dictionary of Python values by column name."""
    names = [str(name) for name in table.columns]
    columns = [table[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def typed(values: Sequence[Any]) -> pd.Series:
    """A column with the type that pandas gives it: numbers become floats if one is missing; mixed columns are objects."""
    present = [value for value in values if value is not None]
    if len(present) < len(values) and all(isinstance(value, int | float) for value in present):
        return pd.Series([math.nan if value is None else float(value) for value in values])
    all_int = all(isinstance(value, int) for value in present)
    return pd.Series(list(values), dtype="int64" if present and all_int and len(present) == len(values) else object)


def distribution(column: pd.Series) -> Choices | None:
    """The distribution of a sepsis or stroke column; None if it has fewer than two distinct values.

    A missing value counts as a value; in a column of objects it is an option called `nan`.
    """
    values = [math.nan if value is None or value != value else value for value in column.tolist()]
    distinct = list(dict.fromkeys(_key(value) for value in values))
    if len(distinct) < 2:
        return None
    is_float = {key: _number(key) is not None for key in distinct}
    floats = [key for key in distinct if is_float[key]]
    if len(floats) <= FEW_VALUES:
        floats = []
    as_text = {key for key in distinct if key != "" and key not in floats}
    if column.dtype != object:
        as_text.discard("nan")
    counts = Counter(key for key in map(_key, values) if key in as_text)
    total = sum(counts.values())
    many = set(floats)
    numbers = np.array([float(key) for key in map(_key, values) if key in many and key != "nan"], dtype=np.float64)
    return _choices(counts, total, len(floats), {*as_text, *floats}, numbers)


def aki_distribution(column: pd.Series) -> Choices:
    """The distribution of a column of the hospitalised cohort, in which `N/A` means missing.

    A column with at most three distinct values is a category; any other must be numbers.
    """
    values = [math.nan if value == "N/A" else value for value in column.tolist()]
    numeric = not any(isinstance(value, str) for value in values)
    if column.dtype == object and numeric:
        values = [float(value) for value in values]
    counts = Counter(_key(value) for value in values)
    if len(counts) <= AKI_FEW_VALUES:
        everything = set(counts)
        if numeric:
            counts.pop("nan", None)
        return _choices(counts, sum(counts.values()), 0, everything, np.zeros(0))
    numbers = np.array([value for value in values if value == value], dtype=np.float64)
    return _choices(Counter(), 1, 1, set(counts), numbers)


def _choices(texts: Counter[str], total: int, floats: int, everything: set[str], numbers: np.ndarray) -> Choices:
    means, stds, mixture = fit_mixture(numbers)
    return Choices(
        vocab=tuple(texts),
        weights=tuple(count / total for count in texts.values()),
        float_ratio=floats / (floats + len(texts)) if floats + len(texts) else 0.0,
        all_vocab=frozenset(everything),
        means=tuple(means.tolist()),
        stds=tuple(stds.tolist()),
        mixture=tuple(mixture.tolist()),
    )


def _key(value: Any) -> str:
    return "" if value is None else str(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
