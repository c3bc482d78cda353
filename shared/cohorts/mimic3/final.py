"""The final table, with the columns and the order that the original's programs expect (spec: mimic3, 10)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shared.cohorts.mimic3 import csv_numbers

FEATURES = (
    "gender", "mechvent", "max_dose_vaso", "re_admission", "age", "Weight_kg", "GCS", "HR", "SysBP", "MeanBP", "DiaBP",
    "RR", "Temp_C", "FiO2_1", "Potassium", "Sodium", "Chloride", "Glucose", "Magnesium", "Calcium", "Hb", "WBC_count",
    "Platelets_count", "PTT", "PT", "Arterial_pH", "paO2", "paCO2", "Arterial_BE", "HCO3", "Arterial_lactate", "SOFA",
    "SIRS", "Shock_Index", "PaO2_FiO2", "cumulated_balance", "SpO2", "BUN", "Creatinine", "SGOT", "SGPT", "Total_bili",
    "INR", "input_total", "input_4hourly", "output_total", "output_4hourly",
)  # fmt: skip
COLUMNS = (
    "traj", "step", "m:presumed_onset", "m:charttime", "m:icustayid", *(f"o:{name}" for name in FEATURES), "a:action",
    "r:reward",
)  # fmt: skip


def final_table(windows: pd.DataFrame) -> pd.DataFrame:
    """The final table from the windows of the second pass: the columns `COLUMNS`, rows in ascending order of stay and bloc."""
    stay = windows["icustayid"]
    by_stay = stay.groupby(stay)
    last = by_stay.cumcount(ascending=False) == 0
    outcome = 1 - 2 * windows["died_within_48h_of_out_time"]
    columns: dict[str, pd.Series] = {
        "traj": by_stay.ngroup() + 1,
        "step": by_stay.cumcount(),
        "m:presumed_onset": windows["presumed_onset"].astype(float),
        "m:charttime": windows["charttime"].astype(float),
        "m:icustayid": stay.astype(float),
        **{f"o:{name}": windows[name].astype(float) for name in FEATURES},
        "a:action": _actions(windows),
        "r:reward": outcome.where(last, 0.0).astype(float),
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


def _actions(windows: pd.DataFrame) -> pd.Series:
    """The action of each window, 0 to 24: five times the quartile of the fluid volume (0: none) plus that of the dose."""
    fluids, dose = windows["input_4hourly"], windows["max_dose_vaso"]
    fluid_bin = _quartiles(fluids, fluids > 0, 0.2499999999)
    dose_bin = _quartiles(dose, dose != 0, 0.249999999999)
    return (5 * fluid_bin + dose_bin.where(dose == 0, dose_bin.clip(lower=1))).astype("int64")


def _quartiles(values: pd.Series, was_given: pd.Series, shift: float) -> pd.Series:
    rank = values[was_given].rank() / was_given.sum()
    return (4 * (rank + shift) // 1).reindex(values.index, fill_value=0)


def reread(table: pd.DataFrame) -> pd.DataFrame:
    """The table as the original's question scripts read it: written as CSV, then read with pandas 2.2.

    The last digits of some numbers change, and some distinct numbers become equal. This matters because the options that the
    scripts draw depend on how many distinct numbers there are.
    """
    return csv_numbers.reread(table, csv_numbers.late)


def finite_stays(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The final table without the stays in which a value is missing or infinite, and how many stays these are."""
    broken = table.loc[~np.isfinite(table.filter(like="o:").to_numpy()).all(axis=1), "m:icustayid"].unique()
    return table[~table["m:icustayid"].isin(broken)].reset_index(drop=True), len(broken)
