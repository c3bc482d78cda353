"""Onset of suspected infection: the time of an antibiotic and a culture that are close to each other."""

from __future__ import annotations

import pandas as pd

from shared.registry.dates import HOUR

CULTURE_AFTER = 24 * HOUR  # the culture comes at most so long after the antibiotic
CULTURE_BEFORE = 72 * HOUR  # the culture comes at most so long before the antibiotic


def onsets(abx: pd.DataFrame, samples: pd.DataFrame, stays: pd.Series) -> pd.Series:
    """The onset in epoch seconds by stay id, for those of `stays` that have one; float64.

    The antibiotics of a stay are tried in their order. Each is compared only with the culture nearest in time (the first of
    equally near ones). If the antibiotic comes first and the culture within 24 h, the onset is the time of the antibiotic. If
    the culture comes first, at most 72 h before, the onset is the time of the culture. The first antibiotic that gives an
    onset decides. (Spec: mimic3, 4.)
    """
    antibiotics = abx[abx["icustay_id"].isin(stays)].dropna(subset=["startdate"])
    antibiotics = antibiotics[["icustay_id", "startdate"]].reset_index(names="drug")
    pairs = antibiotics.merge(samples[["icustay_id", "charttime"]].dropna(), on="icustay_id", sort=False)
    distance = (pairs["charttime"] - pairs["startdate"]).abs()
    pairs = pairs.loc[
        distance.groupby(pairs["drug"]).idxmin()
    ]  # in the order of drugs; the first of equally near cultures
    distance = distance[pairs.index]
    drug_first = (distance <= CULTURE_AFTER) & (pairs["startdate"] <= pairs["charttime"])
    culture_first = (distance <= CULTURE_BEFORE) & (pairs["startdate"] >= pairs["charttime"])
    onset = pairs["startdate"].where(drug_first, pairs["charttime"].where(culture_first))
    return onset.dropna().groupby(pairs["icustay_id"]).first().sort_index()
