"""Onset of suspected infection: an antibiotic and a culture close enough to one another."""

from __future__ import annotations

import pandas as pd

from shared.registry.dates import HOUR

CULTURE_AFTER = 24 * HOUR  # a culture may follow the antibiotic by this much
CULTURE_BEFORE = 72 * HOUR  # and precede it by this much


def onsets(abx: pd.DataFrame, samples: pd.DataFrame, stays: pd.Series) -> pd.Series:
    """Onset in epoch seconds by stay id, for those of `stays` that have one; float64.

    A stay's antibiotics are tried in their order, each with the culture nearest to it only (the first among equals): if
    it comes first and the culture within 24 h, it is the onset; if the culture came up to 72 h before, the culture is.
    The first antibiotic to succeed decides. (Spec: mimic3, 4.)
    """
    given = abx[abx["icustay_id"].isin(stays)].dropna(subset=["startdate"])
    given = given[["icustay_id", "startdate"]].reset_index(names="drug")
    pairs = given.merge(samples[["icustay_id", "charttime"]].dropna(), on="icustay_id", sort=False)
    distance = (pairs["charttime"] - pairs["startdate"]).abs()
    pairs = pairs.loc[distance.groupby(pairs["drug"]).idxmin()]  # drugs ascending, the first culture among equals
    distance = distance[pairs.index]
    drug_first = (distance <= CULTURE_AFTER) & (pairs["startdate"] <= pairs["charttime"])
    culture_first = (distance <= CULTURE_BEFORE) & (pairs["startdate"] >= pairs["charttime"])
    onset = pairs["startdate"].where(drug_first, pairs["charttime"].where(culture_first))
    return onset.dropna().groupby(pairs["icustay_id"]).first().sort_index()
