"""Makes a prepared registry from raw columns: types, split, distributions, mutual information, relations."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, Literal

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.registry import relations as relation_files
from shared.registry import statistics as statistics_files
from shared.registry.features import (
    BEYOND,
    Feature,
    Kind,
    as_number,
    fewest_decimals,
    is_days,
    is_misspelt_number,
    numbers_of,
    to_units,
    too_wide,
    value_text,
)
from shared.registry.leakage import mutual_information
from shared.registry.split import Split, held_out_patients
from shared.registry.statistics import FEW_VALUES, ValueStatistics
from shared.registry.store import PATIENT, Registry

NAMED = 10  # columns that a note names
LIBRARIES = ("numpy", "pandas", "scikit-learn", "pyarrow")


@dataclasses.dataclass(frozen=True)
class RawColumn:
    """A column before its type is known.

    `values` are `[patients]`: any values with None where one is missing, or a float64 array with NaN. `coded` are all labels
    of the column's code table, or None if the column has no codes. If `kind` is None, it is derived from the values. A column
    that is not `visible` never appears in a record or a question; it is kept for splits, labels and subgroups.
    """

    name: str
    display_name: str
    section: str
    unit: str
    values: Sequence[Any] | np.ndarray
    coded: tuple[str, ...] | None = None
    leak_group: str | None = None
    kind: Kind | None = None
    visible: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawRegistry:
    """A registry as the reader of its cohort returns it.

    Three fields are for the mutual information: `ordered` gives the levels of categories that count as numbers, by column;
    `reference` names the datetime column from which other datetimes are counted; `unknown` are categories that count as
    missing. `roles` names the columns that hold a patient's `site`, `time`, `sex` and `age`, if the registry has them.
    `digests` are checksums of the raw files by file name. `notes` say what the reader left out or changed. `left_out` is the
    number of patients who were excluded on request. `timeline` has what changes over time, with many rows for each patient
    (index: patient id); `reading` are figures of a reading that takes long.
    """

    cohort: str
    ids: Sequence[str]
    columns: Sequence[RawColumn]
    ordered: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    unknown: frozenset[str] = frozenset()
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    left_out: int = 0
    timeline: pd.DataFrame | None = None
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build(
    raw: RawRegistry,
    *,
    valid_patients: int,
    seed: int,
    mi_cutoff: float = 0.5,
    split: Split = "random",
    held_out: str = "",
    fit: Literal["train", "all"] = "train",
    salt: str = "",
    progress: Callable[[str], None] | None = None,
) -> Registry:
    """Make a registry from its raw columns: types, split, distributions, mutual information and relations.

    Statistics and mutual information describe the training patients, or with `fit="all"` also those held out, as in the
    original. `mi_cutoff` is in nats. `salt` is mixed into the patients' pseudonyms. `progress` is called with the name of each
    long step. Raises InputError if no training patient would remain, if the registry lacks the column that `split` needs, or
    if a number is misspelt or too large to be shown.
    """
    index = pd.Index(list(raw.ids), dtype=object, name=PATIENT)
    kinds = {column.name: column.kind or _kind(column) for column in raw.columns}
    _refuse_misspelt(raw.columns, kinds)
    _refuse_far_dates(raw.columns, kinds)
    typed = {column.name: _typed(column.values, kinds[column.name], index) for column in raw.columns}
    table = pd.DataFrame(typed, index=index)
    _refuse_huge(table, kinds, {patient: place for place, patient in enumerate(index, start=1)})
    is_valid = held_out_patients(
        table, split, valid_patients=valid_patients, held_out=held_out, roles=raw.roles, seed=seed
    )
    train, valid = table[~is_valid], table[is_valid]
    described = train if fit == "train" else table
    features = [_feature(column, kinds[column.name], described[column.name]) for column in raw.columns]
    if progress:
        progress("fitting distributions")
    statistics = statistics_files.value_statistics(described, features)
    if progress:
        progress("measuring mutual information")
    leakage = mutual_information(
        described,
        features,
        statistics,
        ordered=raw.ordered,
        reference=raw.reference,
        cutoff=mi_cutoff,
        unknown=raw.unknown,
    )
    relations = relation_files.find(described, features, statistics)
    return Registry(
        cohort=raw.cohort,
        features=features,
        train=train,
        valid=valid,
        statistics=statistics,
        leakage=leakage,
        relations=relations,
        timeline=raw.timeline,
        provenance={
            "source": dict(raw.digests),
            "salt": salt,
            "notes": [*raw.notes, *_shown_as_zero(table, features), *_never_asked(described, features, statistics)],
            "roles": dict(raw.roles),
            "options": {
                "valid_patients": valid_patients,
                "seed": seed,
                "mi_cutoff": mi_cutoff,
                "split": split,
                "held_out": held_out,
                "fit": fit,
            },
            "patients": {"train": len(train), "valid": len(valid)},
            "left_out": raw.left_out,
            "versions": versions(),
            **({"reading": dict(raw.reading)} if raw.reading else {}),
        },
    )


def _refuse_misspelt(columns: Sequence[RawColumn], kinds: Mapping[str, Kind]) -> None:
    for column in columns:
        if kinds[column.name] != "number" or isinstance(column.values, np.ndarray):
            continue
        misspelt = next(
            (place for place, value in enumerate(column.values, start=1) if is_misspelt_number(value)), None
        )
        if misspelt:
            raise InputError(
                f"column {column.name}, patient {misspelt} of {len(column.values)}: not written as numbers are (12_3, nan, inf, "
                f"or digits of another script); correct it, or empty the cell"
            )


def _refuse_far_dates(columns: Sequence[RawColumn], kinds: Mapping[str, Kind]) -> None:
    first, last = pd.Timestamp.min.year, pd.Timestamp.max.year
    for column in columns:
        if kinds[column.name] != "datetime" or isinstance(column.values, np.ndarray):
            continue
        dated = (
            (place, value) for place, value in enumerate(column.values, start=1) if isinstance(value, datetime.date)
        )
        patient = next((place for place, value in dated if not first < value.year < last), None)
        if patient:
            raise InputError(
                f"column {column.name}, patient {patient} of {len(column.values)}: a date outside the years {first + 1} to "
                f"{last - 1}; correct it, or empty the cell where it means missing"
            )


def _refuse_huge(table: pd.DataFrame, kinds: Mapping[str, Kind], place: Mapping[Any, int]) -> None:
    for name in (name for name, kind in kinds.items() if kind == "number"):
        numbers = numbers_of(table[name]).dropna()
        largest = numbers.abs().max() if len(numbers) else 0.0
        if largest >= BEYOND or too_wide(numbers.tolist()):
            raise InputError(
                f"column {name}, patient {place[numbers.abs().idxmax()]} of {len(table)}: {largest:.1e} is too large a number "
                f"beside the others of its column; correct it, or mark it as missing"
            )


def _shown_as_zero(table: pd.DataFrame, features: Sequence[Feature]) -> list[str]:
    """One note for each column with values that are not 0 but are shown as 0 after rounding."""
    notes = []
    for feature in (feature for feature in features if feature.kind == "number" and feature.visible):
        numbers = numbers_of(table[feature.name]).dropna().to_numpy()
        zeros = sum(number != 0 and to_units(number, feature.decimals) == 0 for number in numbers.tolist())
        if zeros:
            notes.append(f"column {feature.name}: {zeros} of {len(numbers)} values are not 0 and are shown as 0, with "
                         f"{max(feature.decimals, 0)} decimals; give the column a smaller unit where they matter")  # fmt: skip
    return notes


def _never_asked(
    described: pd.DataFrame, features: Sequence[Feature], statistics: Mapping[str, ValueStatistics]
) -> list[str]:
    """Notes on visible numbers and categories that no question can ask for: they have no value, or only one."""
    without_values, with_one_value = list[str](), list[str]()
    for feature in features:
        if feature.visible and feature.kind in ("number", "category") and feature.name not in statistics:
            texts = {value_text(feature, value) for value in described[feature.name].dropna()}
            if len(texts) < 2:
                (with_one_value if texts else without_values).append(feature.name)
    return [
        f"never asked for, as {reason}: {', '.join(names[:NAMED])}" + (", ..." if len(names) > NAMED else "")
        for names, reason in (
            (without_values, f"no training patient has a value ({len(without_values)} columns)"),
            (
                with_one_value,
                f"all training patients who have a value have the same ({len(with_one_value)} columns)",
            ),
        )
        if names
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries on which the prepared registry depends."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


def _kind(column: RawColumn) -> Kind:
    if column.coded is not None:
        return "category"
    if isinstance(column.values, np.ndarray):
        return "number"
    present = [value for value in column.values if value is not None]
    if present and all(isinstance(value, datetime.date) for value in present):
        return "datetime"
    numbers = {as_number(value) for value in present if not np.isnan(as_number(value))}
    texts = {str(value) for value in present if np.isnan(as_number(value))}
    if not texts or len(numbers) > FEW_VALUES:
        return "number"
    is_free_text = statistics_files.is_free_text(column.name, pd.Series(list(column.values), dtype=object))
    return "text" if is_free_text else "category"


def _typed(values: Sequence[Any] | np.ndarray, kind: str, index: pd.Index) -> pd.Series:
    if isinstance(values, np.ndarray):
        return pd.Series(values, index=index, dtype="float64")
    if kind == "datetime":
        return pd.Series(pd.to_datetime(pd.Series(list(values), dtype=object)).to_numpy(), index=index)
    if kind == "number":
        numbers = [np.nan if value is None else as_number(value) for value in values]
        if all(value is None or not np.isnan(number) for value, number in zip(values, numbers, strict=True)):
            return pd.Series(numbers, index=index, dtype="float64")
    texts = [None if value is None else _plain_text(value) for value in values]
    return pd.Series(texts, index=index, dtype=object)


def _plain_text(value: Any) -> str:
    """The text of a category, the same for `3.0` and for `3`."""
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
        labels=tuple(column.coded or ()) if kind == "category" else (),
        leak_group=column.leak_group,
        visible=column.visible,
        days=kind == "datetime" and is_days(train),
    )
