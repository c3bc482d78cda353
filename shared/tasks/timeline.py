"""A stay of the MIMIC-III cohort as text: the patient, then a block for each four-hour window (spec: mimic3, 11.1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from shared.cohorts.mimic3 import final
from shared.errors import InputError
from shared.registry import patients
from shared.registry.dates import HOUR, YEAR
from shared.registry.store import Registry

PATIENT = ("Gender", "Age", "Readmission")  # shown once; everything else for every window
COHORT = "mimic3"


def finite(registry: Registry) -> pd.DataFrame:
    """The registry's final table without the stays in which a value is missing or infinite; one row for each window."""
    return final.finite_stays(_whole(registry).reset_index(drop=True))[0]


def asked(registry: Registry, split: str, *, as_csv: bool) -> tuple[pd.DataFrame, dict[int, str], str]:
    """What questions about the patients of `split` are made from: a table, the patients of its stays, and the salt.

    The table is that of `finite`, for both splits; with `as_csv` its numbers are as the original read them from its CSV file.
    The patients are the pseudonyms by stay, those of the split only. Raises InputError where the registry has no timeline.
    """
    whole, table = _whole(registry), finite(registry)
    salt = str(registry.provenance.get("salt", ""))
    here = whole[whole.index.isin(registry.split(split).index)]
    patient_of = dict(zip(here["m:icustayid"].astype("int64").tolist(), here.index, strict=True))
    pseudonyms = {stay: patients.pseudonym(salt, patient) for stay, patient in patient_of.items()}
    return (final.reread(table) if as_csv else table), pseudonyms, salt


def _whole(registry: Registry) -> pd.DataFrame:
    if registry.timeline is None:
        raise InputError(f"the registry of {registry.cohort} has no timeline; the task needs the mimic3 cohort")
    return registry.timeline


def readable(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The final table with features under the names shown: age in whole years, four flags as words.

    `names` maps `o:` columns to display names. Rows and the `m:` columns are kept. Raises ValueError where a value is
    missing or infinite: see `finite`.
    """
    shown = table.rename(columns=dict(names))
    shown["Age"] = (shown["Age"] / YEAR).round()
    shown["Gender"] = np.where(shown["Gender"] != 0, "Female", "Male")
    for name in ("Mechanical Ventilation", "Readmission"):
        shown[name] = np.where(shown[name] != 0, "Yes", "No")
    numbers = shown[[name for name in names.values() if shown[name].dtype.kind == "f"]]
    if not np.isfinite(numbers.to_numpy()).all():
        raise ValueError("a value is missing or infinite; leave such stays out")
    return shown[[*(name for name in table.columns if name.startswith("m:")), *names.values()]]


def context(rows: pd.DataFrame) -> str:
    """The record of one stay from its rows of the readable table; every line ends with a newline."""
    first = rows.iloc[0]
    lines = ["[Patient Information]", *(f"{name}: {first[name]}" for name in PATIENT)]
    names = [name for name in rows.columns if not name.startswith("m:") and name not in PATIENT]
    hours = ((rows["m:charttime"] - rows["m:presumed_onset"]) // HOUR).astype(int)
    columns = [[value_text(value) for value in rows[name]] for name in names]
    for hour, values in zip(hours, zip(*columns, strict=True), strict=True):
        lines += [
            "",
            f"[Time: Onset{hour:+d}h]",
            *(f"{name}: {text}" for name, text in zip(names, values, strict=True)),
        ]
    return "\n".join(lines) + "\n"


def words(table: pd.DataFrame, names: Mapping[str, str]) -> set[str]:
    """What the records of the readable table say beside numbers: names, headers and the words of flags; no patient's own."""
    hours = np.unique((table["m:charttime"] - table["m:presumed_onset"]) // HOUR).astype(int)
    headers = {"[Patient Information]", *(f"[Time: Onset{hour:+d}h]" for hour in hours.tolist())}
    return {*names.values(), *headers, "Female", "Male", "Yes", "No"}


def value_text(value: str | float) -> str:
    """A value as shown: texts as they are, whole numbers without a point, others with three decimals."""
    if isinstance(value, str):
        return value
    return str(int(value)) if value == int(value) else f"{value:.3f}"


def pseudonym(salt: str, identifier: int) -> str:
    """What stands for a patient or a stay in a question."""
    return patients.pseudonym(salt, str(identifier))
