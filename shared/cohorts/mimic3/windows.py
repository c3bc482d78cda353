"""Windows of four hours: means of charted values, doses of vasopressors, volumes of fluids and urine (spec: mimic3, 7).

Both ends of a window belong to it, so an event on a boundary counts in both windows. There is no window without a charted
time, so what was given during such a time is in no total. Both rules are the original's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from shared.cohorts.mimic3.charting import COLUMNS, Charted
from shared.registry.dates import HOUR

WIDTH = 4 * HOUR
COUNT = 20  # windows of a stay


@dataclasses.dataclass(frozen=True)
class Spans:
    """Spans of time in which events are counted, in ascending order of stay. stay, begin, end: `[spans]`, epoch seconds."""

    stay: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def pairs(self, events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of an event and a span of the same stay: positions of the events and of the spans, both `[pairs]`."""
        stay = events["stay"].to_numpy()
        first = np.searchsorted(self.stay, stay)
        count = np.searchsorted(self.stay, stay, "right") - first
        event = np.repeat(np.arange(len(events)), count)
        within = np.arange(len(event)) - np.repeat(np.cumsum(count) - count, count)
        return event, first[event] + within

    def sums(self, span: np.ndarray, amounts: np.ndarray) -> np.ndarray:
        """The sum of the amounts of each span: `[spans]`; missing amounts count as 0.

        `span` and `amounts` are `[events]`. The amounts of a span are added as `np.sum` adds an array of them: pairwise, and not
        from left to right. The original did so, and the last digits decide how a printed sum is rounded.
        """
        amounts = np.where(np.isnan(amounts), 0.0, amounts)[np.argsort(span, kind="stable")]
        count = np.bincount(span, minlength=len(self.stay))
        first = np.cumsum(count) - count
        total = np.zeros(len(self.stay))
        for terms in np.unique(count[count > 0]):
            same_count = np.flatnonzero(count == terms)
            total[same_count] = amounts[first[same_count][:, None] + np.arange(terms)].sum(axis=1)
        return total


def aggregate(charted: Charted, stays: int) -> pd.DataFrame:
    """One row for each window with a charted time: stay, bloc (1 to 20), charttime (its beginning), and 65 means.

    `stays` is the number of stays in `charted`.
    """
    begin = charted.time[np.searchsorted(charted.stay, charted.stay)]
    number, inside = np.divmod(charted.time - begin, WIDTH)
    row = np.arange(len(number))
    boundary = (inside == 0) & (number > 0)  # such a time also belongs to the window before
    row = np.concatenate([row, row[boundary]])
    number = np.concatenate([number, number[boundary] - 1])
    row, number = row[number < COUNT], number[number < COUNT]
    window = charted.stay[row] * COUNT + number
    present = np.flatnonzero(np.bincount(window, minlength=stays * COUNT))
    means = {}
    for column, name in enumerate(COLUMNS):
        values = charted.values[row, column]
        known = ~np.isnan(values)
        total = np.bincount(window[known], values[known], minlength=stays * COUNT)[present]
        count = np.bincount(window[known], minlength=stays * COUNT)[present]
        means[name] = np.divide(total, count, out=np.full(len(present), np.nan), where=count > 0)
    stay, number = np.divmod(present, COUNT)
    first = np.full(stays, 0)
    first[charted.stay] = begin
    return pd.DataFrame({"stay": stay, "bloc": number + 1, "charttime": first[stay] + number * WIDTH, **means})


def spans_of(windows: pd.DataFrame) -> Spans:
    """The spans of the windows themselves."""
    begin = windows["charttime"].to_numpy()
    return Spans(windows["stay"].to_numpy(), begin, begin + WIDTH)


def before(windows: pd.DataFrame) -> Spans:
    """One span for each stay: the time before its first window, from epoch 0 on."""
    stay, rows = np.unique(windows["stay"].to_numpy(), return_index=True)
    end = windows["charttime"].to_numpy()[rows] - (windows["bloc"].to_numpy()[rows] - 1) * WIDTH
    return Spans(stay, np.zeros_like(end), end)


def vasopressors(windows: pd.DataFrame, mv: pd.DataFrame, cv: pd.DataFrame) -> pd.DataFrame:
    """median_dose_vaso and max_dose_vaso of each window, NaN if no vasopressor was given. (Spec: mimic3, 7.2.)

    `mv` are infusions with a start and an end (MetaVision), `cv` single entries with a time (CareVue).
    """
    spans = spans_of(windows)
    event, span = spans.pairs(mv)
    start, end = mv["starttime"].to_numpy()[event], mv["endtime"].to_numpy()[event]
    t0, t1 = spans.begin[span], spans.end[span]
    active = _within(end, t0, t1) | _within(start, t0, t1) | ((start <= t0) & (end >= t1))
    cv_event, cv_span = spans.pairs(cv)
    inside = _within(cv["charttime"].to_numpy()[cv_event], spans.begin[cv_span], spans.end[cv_span])
    span = np.concatenate([span[active], cv_span[inside]])
    dose = np.concatenate([mv["rate_std"].to_numpy()[event[active]], cv["rate_std"].to_numpy()[cv_event[inside]]])
    by_window = pd.Series(dose).groupby(span)
    doses = pd.DataFrame({"median_dose_vaso": by_window.median(), "max_dose_vaso": by_window.max()})
    return doses.reindex(range(len(windows))).set_index(windows.index)


def fluids(windows: pd.DataFrame, mv: pd.DataFrame, cv: pd.DataFrame, preadmission: pd.Series) -> pd.DataFrame:
    """Fluids given: input_4hourly of each window, and input_total up to its end. (Spec: mimic3, 7.3.)

    Volumes are in mL, multiplied by the tonicity of the fluid. `mv` and `cv`: see `vasopressors`. `preadmission` `[stays]` is
    the volume given before the ICU, 0 if unknown.
    """
    earlier, during = before(windows), spans_of(windows)
    ahead = [_by_stay(earlier.stay, amounts, len(preadmission)) for amounts in _volumes(earlier, mv, cv)]
    return _running(windows, _volumes(during, mv, cv), [preadmission.to_numpy(dtype=float), *ahead], "input")


def urine(windows: pd.DataFrame, passed: pd.DataFrame, preadmission: pd.Series) -> pd.DataFrame:
    """Urine: output_4hourly of each window, and output_total up to its end, in mL. (Spec: mimic3, 7.4.)

    `passed` are the charted volumes. `preadmission` `[stays]` is the volume before the ICU, 0 if unknown.
    """
    earlier, during = before(windows), spans_of(windows)
    ahead = _by_stay(earlier.stay, _counted(earlier, passed, "charttime", "value"), len(preadmission))
    step = _counted(during, passed, "charttime", "value")
    return _running(windows, [step], [preadmission.to_numpy(dtype=float), ahead], "output")


def _by_stay(stay: np.ndarray, amounts: np.ndarray, stays: int) -> np.ndarray:
    of_stays = np.zeros(stays)
    of_stays[stay] = amounts
    return of_stays


def _running(
    windows: pd.DataFrame, parts: Sequence[np.ndarray], ahead: Sequence[np.ndarray], name: str
) -> pd.DataFrame:
    """Amounts and running totals of each window, as the columns NAME_4hourly and NAME_total.

    `ahead` are amounts before the first window, each `[stays]`; `parts` are amounts of each window, each `[windows]`.
    """
    stay, number = windows["stay"].to_numpy(), windows["bloc"].to_numpy()
    terms = np.zeros((len(ahead[0]), len(ahead) + COUNT * len(parts)))
    terms[:, : len(ahead)] = np.stack(ahead, axis=1)
    place = len(ahead) + (number - 1) * len(parts)
    for offset, part in enumerate(parts):
        terms[stay, place + offset] = part
    # As in the original, the parts of a window are added to the total one after the other, and not as their sum.
    total = terms.cumsum(axis=1)[stay, place + len(parts) - 1]
    return pd.DataFrame({f"{name}_total": total, f"{name}_4hourly": sum(parts)}, index=windows.index)


def _volumes(spans: Spans, mv: pd.DataFrame, cv: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The volumes in each span, each `[spans]`: infusions with a rate, and volumes given at once."""
    event, span = spans.pairs(mv)
    start, end = mv["starttime"].to_numpy()[event], mv["endtime"].to_numpy()[event]
    t0, t1 = spans.begin[span], spans.end[span]
    cases = (
        ((start >= t0) & (end <= t1), end - start),
        ((start <= t0) & _within(end, t0, t1), end - t0),
        (_within(start, t0, t1) & (end >= t1), t1 - start),
        ((start <= t0) & (end >= t1), t1 - t0),
    )
    # If a start or an end is exactly on a boundary, several cases hold, and the volume counts several times. This is an error of
    # the original.
    rate = mv["norm_rate"].to_numpy()[event]
    with np.errstate(invalid="ignore"):
        infused = sum(rate * np.where(holds, seconds, 0) / HOUR for holds, seconds in cases)
    boluses = _counted(spans, mv[mv["rate"].isna()], "starttime", "tev") + _counted(spans, cv, "charttime", "tev")
    return spans.sums(span, np.asarray(infused)), boluses


def _counted(spans: Spans, events: pd.DataFrame, time: str, amount: str) -> np.ndarray:
    event, span = spans.pairs(events)
    inside = _within(events[time].to_numpy()[event], spans.begin[span], spans.end[span])
    return spans.sums(span[inside], events[amount].to_numpy()[event[inside]])


def _within(time: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    return (time >= begin) & (time <= end)
