"""The rules that remove stays from the cohort after the first pass (spec: mimic3, 9)."""

from __future__ import annotations

import pandas as pd

MOST_URINE, MOST_INPUT, MOST_BILIRUBIN = 12_000, 10_000, 10_000  # a larger entry must be wrong


def retained(windows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The stays that remain, and how many stays each rule removed.

    `windows` is the table of the first pass. The stays are in ascending order, with the columns icustayid, morta_90d,
    max_sofa, max_sirs and sepsis_time. The rules are applied one after the other.
    """
    stays = _summary(windows)
    rules = {
        "urine above 12 L in 4 hours": stays["most_urine"] > MOST_URINE,
        "bilirubin above 10,000": stays["most_bilirubin"] > MOST_BILIRUBIN,
        "fluids above 10 L in 4 hours": stays["most_input"] > MOST_INPUT,
        "treatment probably withdrawn": _withdrawn(stays),
        "died at the end of the record": (stays["died_within_48h_of_out_time"] == 1) & (stays["delay"] < 24),
        "SOFA below 2": ~(stays["max_sofa"] >= 2),
    }
    remains = pd.Series(True, index=stays.index)
    removed = {}
    for name, rule in rules.items():
        removed[name] = int((remains & rule).sum())
        remains &= ~rule
    columns = ["morta_90d", "max_sofa", "max_sirs", "sepsis_time"]
    return stays.loc[remains, columns].reset_index(names="icustayid"), removed


def _summary(windows: pd.DataFrame) -> pd.DataFrame:
    by_stay = windows.groupby("icustayid")
    stays = by_stay.agg(
        morta_90d=("mortality_90d", "first"),
        max_sofa=("SOFA", "max"),
        max_sirs=("SIRS", "max"),
        sepsis_time=("presumed_onset", "first"),
        most_urine=("output_4hourly", "max"),
        most_bilirubin=("Total_bili", "max"),
        most_input=("input_4hourly", "max"),
        most_dose=("max_dose_vaso", "max"),
        rows=("bloc", "size"),
        died_within_48h_of_out_time=("died_within_48h_of_out_time", "first"),
        delay=("delay_end_of_record_and_discharge_or_death", "first"),
    )
    # The original takes the row whose bloc equals the number of rows as the last one. If a window is absent, this is wrong.
    last = windows[windows["bloc"] == by_stay["bloc"].transform("size")].set_index("icustayid")
    return stays.assign(last_dose=last["max_dose_vaso"], last_sofa=last["SOFA"])


def _withdrawn(stays: pd.DataFrame) -> pd.Series:
    return (
        (stays["morta_90d"] == 1)
        & (stays["rows"] < 20)
        & (stays["most_dose"] > 0.3)
        & (stays["last_dose"] == 0)
        & (stays["last_sofa"] >= stays["max_sofa"] / 2)
    )
