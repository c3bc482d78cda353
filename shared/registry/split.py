"""Which patients are held out for validation: drawn at random, whole sites, or the latest admissions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.randomness import generator
from shared.registry.features import as_number

Split = Literal["random", "site", "time", "paper"]
PAPER_SEED = 42

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}([ T]\d{2}:\d{2}(:\d{2})?)?)?)?", re.ASCII)


def held_out_patients(
    table: pd.DataFrame, split: Split, *, valid_patients: int, held_out: str, roles: Mapping[str, str], seed: int
) -> np.ndarray:
    """Which patients of `table` are held out: `[patients]` bool.

        random  `valid_patients` patients, drawn from the sorted ids, so that the order of rows in the file does not matter
        site    all patients of the sites in `held_out` (separated by commas); if it is empty, of sites in a drawn order until
                there are `valid_patients` patients
        time    all patients from the date or year `held_out` on; if it is empty, the latest `valid_patients` patients, and any
                others with the same time as the earliest of them. Patients without a time are training patients.
        paper   the `valid_patients` patients that the original drew, which depend on the order of rows

    `roles` names the columns that hold `site` and `time`. Raises InputError if there is no such column, or if one of the two
    groups would be empty.
    """
    if split in ("random", "paper"):
        return _random(table.index, valid_patients, None if split == "paper" else seed)
    if split not in roles:
        raise InputError(f"split = {split!r}: this registry names no column with the patients' {split}")
    column = table[roles[split]]
    chosen = (
        _sites(column, valid_patients, held_out, seed) if split == "site" else _late(column, valid_patients, held_out)
    )
    if chosen.all() or not chosen.any():
        raise InputError(f"held_out = {held_out!r}: a split by {split} must leave patients on both sides; "
                         f"{int(chosen.sum())} of {len(table)} would be held out")  # fmt: skip
    return chosen


def _random(ids: pd.Index, valid_patients: int, seed: int | None) -> np.ndarray:
    if len(ids) <= valid_patients:
        raise InputError(
            f"{len(ids)} patients are too few for valid_patients = {valid_patients}: "
            f"lower it to at most {max(len(ids) - 1, 0)}"
        )
    chosen = np.zeros(len(ids), dtype=bool)
    if seed is None:  # the original's draw
        chosen[np.random.RandomState(PAPER_SEED).permutation(len(ids))[:valid_patients]] = True
        return chosen
    chosen[np.argsort(np.array(ids))[generator(seed, "split").permutation(len(ids))[:valid_patients]]] = True
    return chosen


def _sites(column: pd.Series, valid_patients: int, held_out: str, seed: int) -> np.ndarray:
    sites = np.array([_site(value) for value in column])
    if held_out:
        sites_held_out = [name.strip() for name in held_out.split(",")]
        unknown = sorted(set(sites_held_out) - set(sites))
        if unknown:
            raise InputError(f"held_out = {held_out!r}: there is no site {', '.join(unknown)}")
        return np.isin(sites, sites_held_out)
    names = sorted(set(sites))
    chosen: list[str] = []
    for place in generator(seed, "split", "site").permutation(len(names)):
        if np.isin(sites, chosen).sum() >= valid_patients:
            break
        chosen.append(names[place])
    return np.isin(sites, chosen)


def _site(value: object) -> str:
    number = as_number(value)
    return str(int(number)) if number == number and number.is_integer() else "" if value is None else str(value)


def _date(text: str) -> Any:
    """The moment of a text such as 2023, 2023-01, 2023-01-31 or 2023-01-31 08:30; NaT for any other.

    A text such as 01/02/2023 is not accepted: it may be in January or in February.
    """
    try:
        return pd.Timestamp(text.strip()) if _DATE.fullmatch(text.strip()) else pd.NaT
    except ValueError:
        return pd.NaT


def _late(column: pd.Series, valid_patients: int, held_out: str) -> np.ndarray:
    dated = pd.api.types.is_datetime64_any_dtype(column)
    start: Any
    values = column if dated else pd.Series([as_number(value) for value in column], index=column.index)
    if held_out:
        start = _date(held_out) if dated else as_number(held_out)
        if start != start:
            expected = "date such as 2023-01-31, or year" if dated else "number such as a year"
            raise InputError(f"held_out = {held_out!r}: not a {expected}")
    else:
        present = values.dropna().sort_values()
        if len(present) <= valid_patients:
            raise InputError(
                f"{len(present)} patients with a time are too few for valid_patients = {valid_patients}: lower it"
            )
        start = present.iloc[-valid_patients]
    return (values >= start).to_numpy()
