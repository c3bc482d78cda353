"""Fills missing values in the table of all windows, also from other patients, as the original does (spec: mimic3, 8.1 to 8.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from shared.cohorts.mimic3 import neighbours
from shared.cohorts.mimic3.charting import COLUMNS, VENTILATION

MEASURED = tuple(name for name in COLUMNS if name not in VENTILATION)
RARE = 0.7  # the first pass drops columns with at least this share missing
FEW = 0.05  # a column with less than this share missing is interpolated
SECOND_PASS = (
    "Weight_kg", "GCS", "HR", "SysBP", "MeanBP", "DiaBP", "RR", "SpO2", "Temp_C", "FiO2_1", "Potassium", "Sodium",
    "Chloride", "Glucose", "BUN", "Creatinine", "Magnesium", "Calcium", "Ionised_Ca", "CO2_mEqL", "SGOT", "SGPT",
    "Total_bili", "Albumin", "Hb", "WBC_count", "Platelets_count", "PTT", "PT", "INR", "Arterial_pH", "paO2", "paCO2",
    "Arterial_BE", "HCO3", "Arterial_lactate",
)  # fmt: skip
# Columns that scores and exclusions need. They are kept even if most values are missing; the original stopped with an error.
NEEDED = frozenset({
    "Total_bili", "Temp_C", "HR", "RR", "paCO2", "WBC_count", "paO2", "FiO2_1", "SysBP", "MeanBP", "GCS",
    "Creatinine", "Platelets_count",
})  # fmt: skip


def frequent(windows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The columns that the first pass imputes, and those among them that are too rare but kept because they are needed."""
    missing = windows[list(MEASURED)].isna().mean()
    imputed = [name for name in MEASURED if missing[name] < RARE or name in NEEDED]
    return imputed, [name for name in imputed if not missing[name] < RARE]


def impute(
    windows: pd.DataFrame, columns: Sequence[str], *, ties: str, progress: Callable[[int], object] | None = None
) -> pd.DataFrame:
    """`windows` with the missing values of `columns` filled: by interpolation if few are missing, else from the nearest row.

    `ties` and `progress`: see `neighbours.impute`.
    """
    table = windows[list(columns)].to_numpy(float, copy=True)
    for column in table.T:
        _interpolate(column)
    filled = neighbours.impute(table, ties=ties, progress=progress)
    return windows.assign(**dict(zip(columns, filled.T, strict=True)))


def _interpolate(column: np.ndarray) -> None:
    missing = np.isnan(column)
    if not 0 < missing.sum() < FEW * len(column):
        return
    known = np.flatnonzero(~missing)
    gaps = np.flatnonzero(missing)
    gaps = gaps[(gaps > known[0]) & (gaps < known[-1])]
    column[gaps] = np.interp(gaps, known, column[known])
