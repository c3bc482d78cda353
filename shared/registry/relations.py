"""Finds pairs of shown values that together reveal a third: two dates reveal a length of stay, weight and height a BMI.

`leakage` looks at one feature at a time, and counts all dates from one reference. Here every date, and every difference of two
dates, is compared with every target. Every pair of numbers a, b is tried as a formula of a target t, with any constants A, B
and C: t = A a + B b + C (sums, differences), or ln t = A ln a + B ln b + C (products, ratios). Sums of three or more are in
`sums`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from shared.randomness import generator
from shared.registry.dates import days
from shared.registry.features import Feature, numbers_of
from shared.registry.leakage import MAX_BINS, MAX_ROWS, MIN_BINS, ROWS_IN_CELL
from shared.registry.statistics import ValueStatistics
from shared.registry.sums import of_several

COLUMNS = ("target", "first", "second", "nats", "reason")
DATE, DIFFERENCE, ARITHMETIC, SEVERAL = "date", "difference in time", "arithmetic", "arithmetic with several others"
FALSE_ALARM = 1e-3  # the probability that any unrelated pair of one registry is reported
EXACT = 0.95  # two numbers compute a third if they explain at least this share of its variance
GAIN = 0.25  # and if they leave at most this share of the variance that the better of the two alone leaves unexplained
LEAST_ROWS = 12  # fewer rows with all values decide nothing
WORK = (
    4e11  # the search over all pairs samples rows to need at most so many multiplications; then all rows confirm a pair
)
FEWEST_SAMPLED = 100  # rows
EARLIEST, LATEST = 1900_01_01, 2199_12_31  # whole numbers in this range may be dates


def moments(feature: Feature, column: pd.Series) -> np.ndarray | None:
    """A column of dates as days since 1970: `[patients]` float64, NaN where missing; None for any other column.

    Texts and numbers that can be read as dates, such as 20240131, count as dates too.
    """
    if feature.kind == "datetime":
        return ((column - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)
    known = column.dropna()
    if feature.kind == "number":
        numbers = numbers_of(known)
        if not len(known) or not ((numbers % 1 == 0) & numbers.between(EARLIEST, LATEST)).all():
            return None
        known = numbers.astype("int64").astype(str)
    days_of_known = days([str(value) for value in known])
    if not len(known) or np.isnan(days_of_known).all():
        return None
    days_of_all = np.full(len(column), np.nan)
    days_of_all[column.notna().to_numpy()] = days_of_known
    return days_of_all


@threadpool_limits.wrap(limits=1)
def find(train: pd.DataFrame, features: Sequence[Feature], statistics: Mapping[str, ValueStatistics]) -> pd.DataFrame:
    """All relations among the visible features: one row for each, with the columns `COLUMNS`.

    `first` and `second` together tell something about `target`; `second` is "" for a single date, and for each member of a
    sum of several. `nats` is their mutual information with the target; for arithmetic it is that of Gaussian variables with
    the same share of explained variance. `reason` says what kind of relation it is. `leakage.hidden_with` decides which
    relations tell too much.
    """
    visible = [feature for feature in features if feature.visible]
    dates = {feature.name: date for feature in visible if (date := moments(feature, train[feature.name])) is not None}
    numbers = {
        feature.name: numbers_of(train[feature.name]).to_numpy() for feature in visible if feature.kind == "number"
    }
    rows = _of_dates(train, visible, dates, statistics)
    table = pd.DataFrame({**numbers, **dates}, index=range(len(train)), dtype=np.float64)
    targets = [name for name in numbers if name in statistics]
    rows += [
        (formula.target, formula.first, formula.second, formula.nats, ARITHMETIC)
        for formula in arithmetic(table, targets)
    ]
    for target, names, explained in of_several(table.iloc[_sampled(len(table), MAX_ROWS)], targets):
        rows += [(target, name, "", gaussian_nats(explained), SEVERAL) for name in names]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def nothing() -> pd.DataFrame:
    """An empty table of relations."""
    return pd.DataFrame({name: pd.Series(dtype=float if name == "nats" else object) for name in COLUMNS})


def _of_dates(
    train: pd.DataFrame,
    features: Sequence[Feature],
    dates: Mapping[str, np.ndarray],
    statistics: Mapping[str, ValueStatistics],
) -> list[tuple[str, str, str, float, str]]:
    targets = [feature for feature in features if feature.name in statistics and feature.name not in dates]
    if not dates or not targets:
        return []
    clues = {(name, ""): values for name, values in dates.items()}
    clues |= {(a, b): dates[b] - dates[a] for a, b in itertools.combinations(dates, 2)}
    sample = _sampled(len(train), MAX_ROWS)
    left = [_quantiles(values[sample]) for values in clues.values()]
    right = [_target_codes(feature, train[feature.name].iloc[sample]) for feature in targets]
    nats = _information(left, right, FALSE_ALARM / (len(left) * len(right)))
    return [
        (targets[t].name, first, second, float(nats[c, t]), DIFFERENCE if second else DATE)
        for c, (first, second) in enumerate(clues)
        for t in np.flatnonzero(nats[c] > 0)
    ]


def _sampled(size: int, most: int) -> np.ndarray:
    if size <= most:
        return np.arange(size)
    return np.sort(generator("relations", size).choice(size, most, replace=False))


def _quantiles(values: np.ndarray) -> np.ndarray:
    """The quantile bin of each value: `[rows]` from 1 on; 0 where it is missing."""
    present = ~np.isnan(values)
    codes = np.zeros(len(values), dtype=np.int64)
    if present.any():
        known = values[present]
        bins = min(MAX_BINS, max(MIN_BINS, int(np.sqrt(len(known) / ROWS_IN_CELL))))
        edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
        codes[present] = 1 + np.searchsorted(edges, known, side="right")
    return codes


def _target_codes(feature: Feature, column: pd.Series) -> np.ndarray:
    if feature.kind == "number":
        return _quantiles(numbers_of(column).to_numpy())
    return pd.factorize(column)[0] + 1


def _information(left: Sequence[np.ndarray], right: Sequence[np.ndarray], chance: float) -> np.ndarray:
    """Mutual information in nats `[left, right]` of coded columns, over the rows where both are present.

    It is 0 for a pair that is not significant: independent columns would tell as much with a probability above `chance`.
    """
    joint = _one_hot(left).T @ _one_hot(right)
    rows, columns = _starts(left), _starts(right)
    counts = joint.astype(np.float64)
    terms = counts * np.log(np.where(counts > 0, counts, 1.0))
    sum_of_blocks = lambda values: np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)  # noqa: E731
    by_row, by_column = np.add.reduceat(counts, columns, axis=1), np.add.reduceat(counts, rows, axis=0)
    total = sum_of_blocks(counts)
    entropy_terms = lambda values: values * np.log(np.where(values > 0, values, 1.0))  # noqa: E731
    rows_or_1 = np.maximum(total, 1)
    plug_in = (
        sum_of_blocks(terms)
        - np.add.reduceat(entropy_terms(by_row), rows, axis=0)
        - np.add.reduceat(entropy_terms(by_column), columns, axis=1)
    ) / rows_or_1 + np.log(rows_or_1)
    levels = np.add.reduceat(by_row > 0, rows, axis=0, dtype=np.int64)
    other_levels = np.add.reduceat(by_column > 0, columns, axis=1, dtype=np.int64)
    freedom = np.maximum((levels - 1) * (other_levels - 1), 1)
    nats = plug_in - freedom / (2 * rows_or_1)  # minus the first-order bias of the plug-in estimate
    return np.where((2 * total * plug_in > chi2.isf(chance, freedom)) & (total >= LEAST_ROWS), nats, 0.0)


def _one_hot(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One-hot matrix of all columns side by side: `[rows, codes of all columns]`. A missing value, code 0, is all 0."""
    starts = _starts(columns)
    table = np.zeros((len(columns[0]), starts[-1] + max(columns[-1].max(initial=0), 1)), dtype=np.float32)
    for start, codes in zip(starts, columns, strict=True):
        present = codes > 0
        table[np.flatnonzero(present), start + codes[present] - 1] = 1
    return table


def _starts(columns: Sequence[np.ndarray]) -> np.ndarray:
    sizes = [max(int(codes.max(initial=0)), 1) for codes in columns]
    return np.concatenate([[0], np.cumsum(sizes)[:-1]])


@dataclasses.dataclass(frozen=True)
class Computed:
    """`target` can be computed from `first` and `second`, or its logarithm from theirs if `logarithms`.

    `explained` is the share of its variance that the formula explains.
    """

    target: str
    first: str
    second: str
    logarithms: bool
    explained: float

    @property
    def nats(self) -> float:
        """Mutual information in nats of the two with the target, if all three were Gaussian."""
        return gaussian_nats(self.explained)


def gaussian_nats(explained: float) -> float:
    """Mutual information in nats of Gaussian variables, if one side explains the share `explained` of the other's variance."""
    return float(-0.5 * np.log(max(1 - explained, 1e-12)))


def arithmetic(table: pd.DataFrame, targets: Sequence[str]) -> list[Computed]:
    """Which targets can be computed from two other columns of `table` (float64, NaN where missing).

    A pair is not listed if one of the two is enough. The search over a large table uses a sample of rows; each pair that it
    finds is then confirmed with all rows.
    """
    formulas: dict[tuple[str, str, str], Computed] = {}
    width = max(table.shape[1], 1)
    sample = _sampled(len(table), int(min(MAX_ROWS, max(FEWEST_SAMPLED, WORK / (20 * width**3)))))
    for logarithms in (False, True):
        usable = table.loc[:, (table > 0).sum() == table.notna().sum()] if logarithms else table
        usable_targets = [name for name in targets if name in usable.columns]
        if usable.shape[1] < 3 or not usable_targets:
            continue
        values = pd.DataFrame(np.log(usable)) if logarithms else usable
        part = values.iloc[sample]
        for first, second, target in _search(part, usable_targets):
            explained = _explained_by_two(values[target], values[first], values[second])
            if explained >= EXACT:
                formulas.setdefault((target, first, second), Computed(target, first, second, logarithms, explained))
    return list(formulas.values())


def _search(table: pd.DataFrame, targets: Sequence[str]) -> list[tuple[str, str, str]]:
    """Candidates: (first, second, target) for each target that two other columns may compute."""
    present = table.notna().to_numpy()
    usable = [i for i in range(table.shape[1]) if present[:, i].sum() >= LEAST_ROWS and table.iloc[:, i].std() > 0]
    names = [str(table.columns[i]) for i in usable]
    part = table.iloc[:, usable]
    masks = part.notna().to_numpy(dtype=np.float64)
    scaled = ((part - part.mean()) / part.std()).fillna(0.0).to_numpy(dtype=np.float64)
    places = [place for place, name in enumerate(names) if name in set(targets)]
    if len(names) < 3 or not places:
        return []
    tries = len(names) ** 2 / 2 * len(places)
    candidates: list[tuple[str, str, str]] = []
    for place in places:
        rows = masks[:, place] > 0
        computes = _pairs_that_compute(scaled[rows], masks[rows], scaled[rows, place], tries)
        computes[place] = computes[:, place] = False
        candidates += [(names[a], names[b], names[place]) for a, b in np.argwhere(np.triu(computes, 1))]
    return candidates


def _pairs_that_compute(values: np.ndarray, masks: np.ndarray, target: np.ndarray, tries: float) -> np.ndarray:
    """Which pairs of columns compute the target: `[columns, columns]` bool, over the rows where all three are present.

    `values` and `masks` (1 where a value is present) are `[rows, columns]`; missing values are 0. `target` is `[rows]`, none
    missing. `tries` is the number of pairs that are tried in all, for the probability of a false alarm. The names below: a and
    b are the two columns, t is the target; `ab` is the covariance of a and b.
    """
    with_target = masks * target[:, None]
    count = np.maximum(masks.T @ masks, 1.0)
    mean_a, mean_t = values.T @ masks / count, masks.T @ with_target / count
    aa = (values**2).T @ masks / count - mean_a**2
    tt = masks.T @ (with_target * target[:, None]) / count - mean_t**2
    at = values.T @ with_target / count - mean_a * mean_t
    ab = values.T @ values / count - mean_a * mean_a.T
    bb, bt = aa.T, at.T
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.fmax(at**2 / (aa * tt), bt**2 / (bb * tt))
        both = (at**2 * bb - 2 * at * bt * ab + bt**2 * aa) / ((aa * bb - ab**2) * tt)
        chance = tries * np.maximum(1 - both, 1e-15) ** ((count - 3) / 2)
    sound = (count >= LEAST_ROWS) & (tt > 1e-9) & (aa > 1e-9) & (bb > 1e-9) & (aa * bb - ab**2 > 1e-11 * aa * bb)
    gained = (1 - both <= GAIN * (1 - alone)) & (1 - alone > 1e-9)  # not if one column alone explains everything
    return sound & (both >= EXACT) & gained & (chance < FALSE_ALARM)


def _explained_by_two(target: pd.Series, first: pd.Series, second: pd.Series) -> float:
    """The share of the variance of `target` that a linear fit on `first` and `second` explains."""
    rows = pd.concat([target, first, second], axis=1).dropna().to_numpy()
    centred = rows - rows.mean(axis=0)
    scale = centred.std(axis=0)
    if len(rows) < LEAST_ROWS or not (scale > 0).all():
        return 0.0
    centred = centred / scale
    weights = np.linalg.lstsq(centred[:, 1:], centred[:, 0], rcond=None)[0]
    return float(1 - ((centred[:, 0] - centred[:, 1:] @ weights) ** 2).sum() / len(rows))
