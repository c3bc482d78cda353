"""From named columns of plain values to a prepared registry: types, split, distributions, mutual information."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.randomness import generator
from shared.registry import statistics as statistics_files
from shared.registry.features import Feature, as_number, fewest_decimals, numbers_of
from shared.registry.leakage import mutual_information
from shared.registry.statistics import FEW_VALUES
from shared.registry.store import PATIENT, Registry

LIBRARIES = ("numpy", "pandas", "scikit-learn", "pyarrow")


@dataclasses.dataclass(frozen=True)
class RawColumn:
    """A column before its type is known: `values` are `[patients]`, None where missing.

    `coded` are the texts that its code table can give, or None where cells stand for themselves.
    """

    name: str
    display_name: str
    section: str
    unit: str
    values: Sequence[Any]
    coded: tuple[str, ...] | None = None
    leak_group: str | None = None


def build(
    cohort: str,
    ids: Sequence[str],
    columns: Sequence[RawColumn],
    *,
    valid_patients: int,
    seed: int,
    mi_cutoff: float,
    ordered: Mapping[str, Sequence[str]],
    reference: str | None,
    provenance: Mapping[str, Any],
    progress: Callable[[str], None] | None = None,
) -> Registry:
    """Make the registry. Raises InputError if no training patients would remain."""
    if len(ids) <= valid_patients:
        raise InputError(
            f"{len(ids)} patients are too few for valid_patients = {valid_patients}: "
            f"lower it to at most {max(len(ids) - 1, 0)}"
        )
    held_out = np.zeros(len(ids), dtype=bool)
    # Over sorted ids, so that the order of rows in a file does not decide who is held out.
    held_out[np.argsort(np.array(ids))[generator(seed, "split").permutation(len(ids))[:valid_patients]]] = True
    index = pd.Index(list(ids), dtype=object, name=PATIENT)
    kinds = {column.name: _kind(column) for column in columns}
    typed = {column.name: _typed(column.values, kinds[column.name], index) for column in columns}
    table = pd.DataFrame(typed, index=index)
    train, valid = table[~held_out], table[held_out]
    features = [_feature(column, kinds[column.name], train[column.name]) for column in columns]
    if progress:
        progress("fitting distributions")
    statistics = statistics_files.fit(train, features)
    if progress:
        progress("measuring mutual information")
    leakage = mutual_information(train, features, statistics, ordered=ordered, reference=reference, cutoff=mi_cutoff)
    return Registry(
        cohort=cohort,
        features=features,
        train=train,
        valid=valid,
        statistics=statistics,
        leakage=leakage,
        provenance={
            **provenance,
            "options": {"valid_patients": valid_patients, "seed": seed, "mi_cutoff": mi_cutoff},
            "patients": {"train": len(train), "valid": len(valid)},
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the result."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


def _kind(column: RawColumn) -> str:
    if column.coded is not None:
        return "category"
    present = [value for value in column.values if value is not None]
    if present and all(isinstance(value, datetime.date) for value in present):
        return "datetime"
    numbers = {as_number(value) for value in present if not np.isnan(as_number(value))}
    texts = {str(value) for value in present if np.isnan(as_number(value))}
    if not texts or len(numbers) > FEW_VALUES:
        return "number"
    named = statistics_files.is_free_text(column.name, pd.Series(list(column.values), dtype=object))
    return "text" if named else "category"


def _typed(values: Sequence[Any], kind: str, index: pd.Index) -> pd.Series:
    if kind == "datetime":
        return pd.Series(pd.to_datetime(pd.Series(list(values), dtype=object)).to_numpy(), index=index)
    if kind == "number":
        numbers = [np.nan if value is None else as_number(value) for value in values]
        if all(value is None or not np.isnan(number) for value, number in zip(values, numbers, strict=True)):
            return pd.Series(numbers, index=index, dtype="float64")
    texts = [None if value is None else _plain_text(value) for value in values]
    return pd.Series(texts, index=index, dtype=object)


def _plain_text(value: Any) -> str:
    """`3.0` and `3` are one category."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _feature(column: RawColumn, kind: Any, train: pd.Series) -> Feature:
    present = list(dict.fromkeys(train.dropna()))
    categories = dict.fromkeys((*(column.coded or ()), *present)) if kind == "category" else {}
    return Feature(
        name=column.name,
        display_name=column.display_name,
        section=column.section,
        kind=kind,
        unit=column.unit,
        decimals=fewest_decimals(set(numbers_of(train).dropna())) if kind == "number" else 0,
        categories=tuple(categories),
        leak_group=column.leak_group,
    )
