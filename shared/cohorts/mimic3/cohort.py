"""Makes the sepsis cohort from the extracts, in two passes; the second uses only the stays that the exclusions left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from shared.cohorts.mimic3 import patients, windows
from shared.cohorts.mimic3.charting import chart
from shared.cohorts.mimic3.cleaning import clean
from shared.cohorts.mimic3.onset import onsets
from shared.cohorts.mimic3.reading import Extracts
from shared.registry.dates import HOUR

ADULT_DAYS = 6_574
CONSTANTS = {  # values that do not change during a stay: name in the window table -> name in demog
    "gender": "gender",
    "age": "age",
    "elixhauser": "elixhauser",
    "re_admission": "re_admission",
    "died_in_hosp": "morta_hosp",
    "mortality_90d": "morta_90",
}
NEAR_DEATH = 48 * HOUR


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that change the cohort: how ties are resolved (see `neighbours.TIES`), and the corrections (see `fixes`)."""

    ties: str = "stable"
    fixes: frozenset[str] = frozenset()

    @property
    def as_csv(self) -> bool:
        """Whether numbers have the rounding errors of the original's CSV readers, for results equal to the original's."""
        return self.ties == "introsort"


def candidates(extracts: Extracts) -> tuple[pd.DataFrame, dict[str, int]]:
    """The stays of adults with suspected infection, in ascending order of id, and how many stays were left out and why.

    Columns: icustay_id, onset, dischtime, outtime, dod, and those in `CONSTANTS`.
    """
    everything, stays = extracts.whole("demog"), extracts.whole("preadm_fluid")
    demog = patients.reduce_demog(everything)
    samples = patients.assign_cultures(patients.cultures(extracts.whole("microbio"), extracts.whole("culture")), demog)
    abx = patients.assign_antibiotics(extracts.whole("abx"), demog)
    onset = onsets(abx, samples, demog["icustay_id"])
    demog = demog.set_index("icustay_id").assign(onset=onset)
    infected = demog[demog["onset"] > 0]
    adults = infected[infected["age"] > ADULT_DAYS].sort_index()
    left_out = {
        "patients": int(everything["subject_id"].nunique()),
        "ICU stays": len(stays),
        "without their admission or patient on file": len(stays) - len(everything),
        "not the first of their admission, or its times are another's": len(everything) - len(demog),
        "cultures that belong to no stay": int(samples["icustay_id"].isna().sum()),
        "antibiotics that belong to no stay": int(abx["icustay_id"].isna().sum()),
        "without suspected infection": len(demog) - len(infected),
        "not adult": len(infected) - len(adults),
    }
    columns = ["onset", "dischtime", "outtime", "dod", *CONSTANTS.values()]
    return adults[columns].reset_index(), left_out


def window_table(
    extracts: Extracts, stays: pd.DataFrame, options: Options, *, second: bool, report: Callable[[int], object]
) -> pd.DataFrame:
    """The windows of `stays` before imputation, in ascending order of stay and bloc.

    `second` says that it is the second pass. `report(n)` is called after each batch of n stays.
    """
    tables = []
    for batch in extracts.batches(stays):
        tables.append(_windows_of(extracts, batch, options, second=second))
        report(len(batch))
    return pd.concat(tables, ignore_index=True)


def _windows_of(extracts: Extracts, stays: pd.DataFrame, options: Options, *, second: bool) -> pd.DataFrame:
    charted = chart(*extracts.charted(stays))
    last = pd.Series(charted.time).groupby(charted.stay).max().reindex(range(len(stays)))
    charted = clean(charted, second=second, fixes=options.fixes)
    table = windows.aggregate(charted, len(stays))
    mv, cv = extracts.of_stays("fluid_mv", stays), extracts.of_stays("fluid_cv", stays)
    with np.errstate(divide="ignore", invalid="ignore"):
        mv["norm_rate"] = mv["tev"] * mv["rate"] / mv["amount"]
    urine_before = pd.Series(0.0, index=range(len(stays)))
    if "preadmission_urine" in options.fixes:
        before_icu = extracts.of_stays("preadm_uo", stays)
        urine_before = urine_before.add(before_icu.groupby("stay")["value"].sum(), fill_value=0)
    fluids_before = extracts.of_stays("preadm_fluid", stays).set_index("stay")["inputpreadm"]
    parts = (
        windows.vasopressors(table, extracts.of_stays("vaso_mv", stays), extracts.of_stays("vaso_cv", stays)),
        windows.fluids(table, mv, cv, fluids_before.reindex(range(len(stays))).fillna(0)),
        windows.urine(table, extracts.of_stays("uo", stays), urine_before),
        _constants(stays, last).loc[table["stay"]].set_index(table.index),
    )
    table = pd.concat([table, *parts], axis=1).drop(columns="stay")
    return table.assign(cumulated_balance=table["input_total"] - table["output_total"])


def _constants(stays: pd.DataFrame, last: pd.Series) -> pd.DataFrame:
    constants = stays[list(CONSTANTS.values())].rename(columns={source: name for name, source in CONSTANTS.items()})
    died_near_end = (stays["dod"] - stays["outtime"]).abs() < NEAR_DEATH
    return constants.astype(float).assign(
        icustayid=stays["icustay_id"],
        presumed_onset=stays["onset"],
        died_within_48h_of_out_time=died_near_end.astype(float),
        delay_end_of_record_and_discharge_or_death=(stays["dischtime"] - last) / HOUR,
    )
