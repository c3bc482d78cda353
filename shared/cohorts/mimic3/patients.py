"""Stays and their evidence of infection: one stay for each admission, and the stay of each antibiotic and culture."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shared.registry.dates import DAY, HOUR

READMISSION_DAYS = 30
SLACK = 48 * HOUR  # an antibiotic or a culture up to so long before or after a stay may belong to it


def reduce_demog(demog: pd.DataFrame) -> pd.DataFrame:
    """The first stay of each admission, with `re_admission` added and missing outcomes set to 0.

    An admission is identified only by its times of admission and discharge. So if two patients have the same times, the one
    with the larger id is lost, as in the original. `re_admission` is 1 if the previous discharge of the patient was at most 30
    days before this admission. (Spec: mimic3, 3.)
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
    """All cultures: those of the laboratory in file order, then those charted at the bedside. This order decides ties.

    Columns subject_id, hadm_id, icustay_id and charttime, all float64 with NaN where missing.
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
    """`samples` with a missing `icustay_id` filled from the reduced `demog`.

    The stay is found by patient and time, or else as the only stay of the admission.
    """
    by_time = _stays_around(samples, "charttime", demog, "subject_id")
    counted = demog.groupby(["subject_id", "hadm_id"])["icustay_id"].agg(["size", "first"]).reset_index()
    single_stays = counted[counted["size"] == 1].astype(float)
    by_admission = samples.merge(single_stays, on=["subject_id", "hadm_id"], how="left")["first"]
    filled = samples["icustay_id"].fillna(by_time).fillna(by_admission)
    return samples.assign(icustay_id=filled)


def assign_antibiotics(abx: pd.DataFrame, demog: pd.DataFrame) -> pd.DataFrame:
    """Antibiotics as float64, with a missing `icustay_id` filled by admission and time."""
    abx = abx.astype(float)
    return abx.assign(icustay_id=abx["icustay_id"].fillna(_stays_around(abx, "startdate", demog, "hadm_id")))


def _stays_around(events: pd.DataFrame, time: str, demog: pd.DataFrame, key: str) -> pd.Series:
    """The stay of each event, by event; events without one are absent.

    It is the last stay in `demog` with the same `key` whose time is within `SLACK` of the event, or the only stay of that key.
    """
    stays = demog[[key, "icustay_id", "intime", "outtime"]].astype(float)
    stays["only"] = stays.groupby(key)["icustay_id"].transform("size") == 1
    events = events[[key, time]].reset_index(names="event").dropna(subset=[key])
    pairs = events.merge(stays, on=key)
    near = (pairs[time] >= pairs["intime"] - SLACK) & (pairs[time] <= pairs["outtime"] + SLACK)
    return pairs[near | pairs["only"]].groupby("event")["icustay_id"].last()
