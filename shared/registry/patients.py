"""The patients of a question set, for results by subgroup: pseudonym, split, age band, sex and site of each."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from shared.errors import InputError
from shared.registry.features import as_number, value_text
from shared.registry.store import Registry, read_parquet
from shared.storage import files

AGE_BANDS = ((0, "under 18"), (18, "18-39"), (40, "40-59"), (60, "60-69"), (70, "70-79"), (80, "80 and over"))
COLUMNS = ("patient", "split", "age_band", "sex", "site")
SUBGROUPS = COLUMNS[2:]
UNKNOWN = "unknown"


def pseudonym(salt: str, patient: str) -> str:
    """The name of a patient in questions: a salted hash of the id, 16 hexadecimal digits."""
    return hashlib.blake2b((salt + patient).encode(), digest_size=8).hexdigest()


def age_band(age: object) -> str:
    """The age band of an age in years; "unknown" if the age is missing or negative."""
    number = as_number(age)
    return UNKNOWN if number != number or number < 0 else [name for start, name in AGE_BANDS if number >= start][-1]


def patients_table(registry: Registry) -> pd.DataFrame:
    """One row for each patient of both splits, with the columns `COLUMNS`; a value that the registry lacks is "unknown"."""
    roles = registry.provenance.get("roles", {})
    salt = str(registry.provenance.get("salt", ""))
    parts = []
    for split in ("train", "valid"):
        table = registry.split(split)
        part = pd.DataFrame({"patient": [pseudonym(salt, str(patient)) for patient in table.index], "split": split})
        part["age_band"] = [age_band(age) for age in table[roles["age"]]] if "age" in roles else UNKNOWN
        for name in ("sex", "site"):
            part[name] = _texts(registry, table, roles[name]) if name in roles else UNKNOWN
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _texts(registry: Registry, table: pd.DataFrame, name: str) -> list[str]:
    feature = registry.feature(name)
    column = table[name]
    return [
        value_text(feature, value) if present else UNKNOWN
        for value, present in zip(column, column.notna(), strict=True)
    ]


def write_patients(path: Path, registry: Registry) -> None:
    """Write `patients_table` as Parquet, readable by its owner only."""
    with files.replacing(path) as temporary:
        patients_table(registry).to_parquet(temporary, index=False)


def read_patients(path: Path) -> pd.DataFrame:
    """Read the table that `write_patients` wrote. Raises InputError if the file is missing or is another kind of file."""
    table = read_parquet(path)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"{path}: not a file of patients, these columns are missing: {', '.join(missing)}")
    return table
