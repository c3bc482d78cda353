"""Who is held out: patients at random, whole sites, or the latest admissions. Always whole patients."""

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
    """`[patients]` bool: who is held out.

        random  `valid_patients`, drawn over sorted ids, so that the order of rows in a file does not decide
        site    the sites that `held_out` lists (separated by commas); without it, sites in a drawn order until they have
                `valid_patients`
        time    everybody from the date or year `held_out` on; without it, the latest `valid_patients` and who shares the
                earliest of their times. A patient without a time is a training patient.
        paper   the original's `valid_patients`, by the order of rows

    `roles` names the columns `site` and `time`. Raises InputError where nobody would remain on either side.
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
    if seed is None:
        chosen[np.random.RandomState(PAPER_SEED).permutation(len(ids))[:valid_patients]] = True
        return chosen
    chosen[np.argsort(np.array(ids))[generator(seed, "split").permutation(len(ids))[:valid_patients]]] = True
    return chosen


def _sites(column: pd.Series, valid_patients: int, held_out: str, seed: int) -> np.ndarray:
    sites = np.array([_site(value) for value in column])
    if held_out:
        wanted = [name.strip() for name in held_out.split(",")]
        unknown = sorted(set(wanted) - set(sites))
        if unknown:
            raise InputError(f"held_out = {held_out!r}: there is no site {', '.join(unknown)}")
        return np.isin(sites, wanted)
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
    """A day, its month or year alone, or a time; NaT for other texts: whether 01/02/2023 is in January nobody can know."""
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
            known = "date such as 2023-01-31, or year" if dated else "number such as a year"
            raise InputError(f"held_out = {held_out!r}: not a {known}")
    else:
        present = values.dropna().sort_values()
        if len(present) <= valid_patients:
            raise InputError(
                f"{len(present)} patients with a time are too few for valid_patients = {valid_patients}: lower it"
            )
        start = present.iloc[-valid_patients]
    return (values >= start).to_numpy()
