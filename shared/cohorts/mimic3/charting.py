"""One row of 65 columns for each charted time of a stay, from bedside measurements, laboratory values and ventilation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from shared.cohorts.mimic3 import reference
from shared.registry.dates import HOUR

BEFORE, AFTER = 29 * HOUR, 53 * HOUR  # the window around the onset of infection, both ends included
COLUMNS = reference.feature_names()
POSITION = {name: index for index, name in enumerate(COLUMNS)}
VENTILATION = ("mechvent", "extubated")


@dataclasses.dataclass(frozen=True)
class Charted:
    """Charted times in ascending order of stay and time.

    stay: `[rows]` int64, the position of the stay in its batch; time: `[rows]` int64, epoch seconds; values: `[rows, 65]`
    float64, NaN where missing, columns in the order of `COLUMNS`.
    """

    stay: np.ndarray
    time: np.ndarray
    values: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """The values of one column, as a view that can be changed in place: `[rows]`."""
        return self.values[:, POSITION[name]]


def chart(ce: pd.DataFrame, labs: pd.DataFrame, mechvent: pd.DataFrame) -> Charted:
    """One row for each time that occurs in one of the three tables.

    Each table has integer columns `stay` and `time`; `ce` (bedside) and `labs` also have itemid and valuenum, `mechvent` its
    two flags. If several rows of a table belong to the same cell, the last one counts. A row without a number, or whose item
    is none of the columns, still makes a charted time. (Spec: mimic3, 5.)
    """
    tables = (ce, labs, mechvent)
    stay, time = (np.concatenate([table[name].to_numpy(np.int64) for table in tables]) for name in ("stay", "time"))
    first = time.min() if len(time) else 0
    span = time.max() - first + 1 if len(time) else 1
    keys, rows = np.unique(stay * span + (time - first), return_inverse=True)
    values = np.full((len(keys), len(COLUMNS)), np.nan)
    ends = np.cumsum([len(table) for table in tables])
    for table, end, source in zip((ce, labs), ends, ("vitals", "labs")):
        known = reference.item_columns(source)
        place = known.index.get_indexer(pd.Index(table["itemid"]))
        listed = place >= 0
        column = known.to_numpy()[place[listed]]
        # If several values belong to the same cell, NumPy keeps the last.
        values[rows[end - len(table) : end][listed], column] = table["valuenum"].to_numpy(float)[listed]
    for name in VENTILATION:
        values[rows[ends[1] :], POSITION[name]] = mechvent[name].to_numpy(float)
    return Charted(keys // span, keys % span + first, values)


def hold(charted: Charted, potassium_hours: float | None = None) -> np.ndarray:
    """`charted.values` `[rows, 65]` with each missing cell filled by the last measured value of the stay, if it is still valid.

    `reference.hold_hours` says how long a value is valid; `potassium_hours` replaces its entry for potassium. (Spec: mimic3,
    6.9.)
    """
    hours = reference.hold_hours()
    if potassium_hours is not None:
        hours["Potassium"] = potassium_hours
    limit = np.array([hours[name] for name in COLUMNS]) * HOUR
    rows = np.arange(len(charted.time))
    begin = np.searchsorted(charted.stay, charted.stay)  # the first row of each row's stay
    held = charted.values.copy()
    for column in range(held.shape[1]):
        values = charted.values[:, column]
        known = ~np.isnan(values)
        last = np.maximum.accumulate(np.where(known, rows, -1))
        fresh = (last >= begin) & (charted.time - charted.time[last] <= limit[column])
        fill = ~known & fresh
        held[fill, column] = values[last[fill]]
    return held
