"""Values computed from the window table after imputation: SOFA, SIRS, shock index, oxygenation (spec: mimic3, 8.4 to 8.8)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shared.registry.dates import YEAR

OLDEST, SHIFTED_AGE = 150 * YEAR, 91.4 * YEAR  # MIMIC-III stores ages above 89 as about 300 years; they become 91.4
EXTREME = 0.999  # the quantile at which the shock index is capped


def finish(windows: pd.DataFrame, *, second: bool) -> pd.DataFrame:
    """`windows` with recoded constants and all derived columns. `second` adds the steps that only the second pass has."""
    table = windows.copy()
    table["gender"] -= 1
    table.loc[table["age"] > OLDEST, "age"] = SHIFTED_AGE
    table["mechvent"] = (table["mechvent"].fillna(0) > 0).astype(float)
    doses = ["median_dose_vaso", "max_dose_vaso"]
    table[doses] = table[doses].fillna(0.0)
    table["PaO2_FiO2"] = table["paO2"] / table["FiO2_1"]
    table["Shock_Index"] = _shock_index(table, capped=second)
    table["SOFA"] = sofa(table)
    table["SIRS"] = sirs(table)
    if second:
        inputs = ["input_total", "input_4hourly"]
        table[inputs] = table[inputs].clip(lower=0)
    return table


def _shock_index(table: pd.DataFrame, *, capped: bool) -> pd.Series:
    index = (table["HR"] / table["SysBP"]).replace([np.inf, -np.inf], np.nan)
    index = index.fillna(index.mean())
    return index.clip(upper=float(index.quantile(EXTREME))) if capped else index


def sofa(table: pd.DataFrame) -> np.ndarray:
    """The sequential organ failure assessment score (SOFA), 0 to 24: `[rows]` float64.

    Needs the columns PaO2_FiO2, Platelets_count, Total_bili, MeanBP, max_dose_vaso, GCS, Creatinine and output_4hourly. A few
    exact limits belong to no class (such as bilirubin = 12), as in the original.
    """
    names = ("PaO2_FiO2", "Platelets_count", "Total_bili", "MeanBP", "max_dose_vaso", "GCS", "Creatinine",
             "output_4hourly")  # fmt: skip
    ratio, platelets, bilirubin, pressure, dose, gcs, creatinine, passed = (table[n].to_numpy(float) for n in names)
    organs = (
        ((ratio >= 300) & (ratio < 400), (ratio >= 200) & (ratio < 300), (ratio >= 100) & (ratio < 200), ratio < 100),
        (
            (platelets >= 100) & (platelets < 150),
            (platelets >= 50) & (platelets < 100),
            (platelets >= 20) & (platelets < 50),
            platelets < 20,
        ),
        (
            (bilirubin >= 1.2) & (bilirubin < 2),
            (bilirubin >= 2) & (bilirubin < 6),
            (bilirubin >= 6) & (bilirubin < 12),
            bilirubin > 12,
        ),
        ((pressure >= 65) & (pressure < 70), pressure < 65, (dose > 0) & (dose <= 0.1), dose > 0.1),
        ((gcs > 12) & (gcs <= 14), (gcs > 9) & (gcs <= 12), (gcs > 5) & (gcs <= 9), gcs <= 5),
        (
            (creatinine >= 1.2) & (creatinine < 2),
            (creatinine >= 2) & (creatinine < 3.5),
            ((creatinine >= 3.5) & (creatinine < 5)) | (passed < 84),
            (creatinine > 5) | (passed < 34),
        ),
    )
    points = [np.max([holds * score for score, holds in enumerate(organ, start=1)], axis=0) for organ in organs]
    return np.sum(points, axis=0).astype(float)


def sirs(table: pd.DataFrame) -> np.ndarray:
    """How many criteria of the systemic inflammatory response syndrome (SIRS) are met, 0 to 4: `[rows]` float64."""
    criteria = (
        (table["Temp_C"] >= 38) | (table["Temp_C"] <= 36),
        table["HR"] > 90,
        (table["RR"] >= 20) | (table["paCO2"] <= 32),
        (table["WBC_count"] >= 12) | (table["WBC_count"] < 4),
    )
    return np.sum([holds.to_numpy() for holds in criteria], axis=0).astype(float)
