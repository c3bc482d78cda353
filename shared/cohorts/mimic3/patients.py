"""Patients and their evidence of infection: one stay for each admission, antibiotics and cultures given to stays."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shared.registry.dates import DAY, HOUR

READMISSION_DAYS = 30
SLACK = 48 * HOUR  # evidence this long before or after a stay may belong to it


def reduce_demog(demog: pd.DataFrame) -> pd.DataFrame:
    """The first stay of each admission, with `re_admission` and outcomes filled.

    Admissions are told apart by their pair of times alone, so of two patients with the same pair the one with the larger
    id is lost, as in the original. `re_admission`: 1 if the patient's last discharge before this one's lies at most 30
    days before the admission. (Spec: mimic3, 3.)
    """
    reduced = demog.drop_duplicates(["admittime", "dischtime"]).reset_index(drop=True)
    outcomes = ["morta_90", "morta_hosp", "elixhauser"]
    reduced[outcomes] = reduced[outcomes].astype(float).fillna(0.0)
    discharges = reduced[["subject_id", "dischtime"]].drop_duplicates().sort_values(["subject_id", "dischtime"])
    discharges["before"] = discharges.groupby("subject_id")["dischtime"].shift()
    before = reduced.merge(discharges, on=["subject_id", "dischtime"], how="left")["before"]
    reduced["re_admission"] = (reduced["admittime"] - before <= READMISSION_DAYS * DAY).astype(float)
    return reduced


def cultures(microbio: pd.DataFrame, culture: pd.DataFrame) -> pd.DataFrame:
    """All samples in the order that decides ties: the laboratory's in file order, then those noted at the bedside.

    Columns subject_id, hadm_id, icustay_id, charttime, each float64 with NaN where missing.
    """
    samples = pd.DataFrame(
        {
            "subject_id": microbio["subject_id"],
            "hadm_id": microbio["hadm_id"],
            "icustay_id": np.nan,
            "charttime": microbio["charttime"].fillna(microbio["chartdate"]),
        }
    )
    both = pd.concat([samples.astype(float), culture[list(samples.columns)].astype(float)], ignore_index=True)
    return both


def assign_cultures(samples: pd.DataFrame, demog: pd.DataFrame) -> pd.DataFrame:
    """`samples` with `icustay_id` filled where a stay of the reduced `demog` fits, by patient or by admission."""
    by_time = _stays_around(samples, "charttime", demog, "subject_id")
    counted = demog.groupby(["subject_id", "hadm_id"])["icustay_id"].agg(["size", "first"]).reset_index()
    only = counted[counted["size"] == 1].astype(float)
    by_admission = samples.merge(only, on=["subject_id", "hadm_id"], how="left")["first"]
    filled = samples["icustay_id"].fillna(by_time).fillna(by_admission)
    return samples.assign(icustay_id=filled)


def assign_antibiotics(abx: pd.DataFrame, demog: pd.DataFrame) -> pd.DataFrame:
    """Antibiotics as float64 with `icustay_id` filled where a stay of the same admission fits."""
    abx = abx.astype(float)
    return abx.assign(icustay_id=abx["icustay_id"].fillna(_stays_around(abx, "startdate", demog, "hadm_id")))


def _stays_around(events: pd.DataFrame, time: str, demog: pd.DataFrame, key: str) -> pd.Series:
    """For each event the last stay in demog's order with the same key that its time lies in or near, or the only one."""
    stays = demog[[key, "icustay_id", "intime", "outtime"]].astype(float)
    stays["only"] = stays.groupby(key)["icustay_id"].transform("size") == 1
    events = events[[key, time]].reset_index(names="event").dropna(subset=[key])
    pairs = events.merge(stays, on=key)
    near = (pairs[time] >= pairs["intime"] - SLACK) & (pairs[time] <= pairs["outtime"] + SLACK)
    return pairs[near | pairs["only"]].groupby("event")["icustay_id"].last()
