"""Two shown values that together give away a third: two dates a length of stay, a weight and a height a body-mass index.

`leakage` judges one feature at a time and counts dates from one reference. Here every date and every difference of two
dates counts as a column of its own, and every two numbers are tried for a sum, a difference, a product or a ratio, with
any factors: t = A a + B b + C, or ln t = A ln a + B ln b + C; sums of more are in `sums`. Training patients only.
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
FALSE_ALARM = 1e-3  # of one registry: the chance that a pair which tells nothing passes for one that does
EXACT = 0.95  # share of a number's variance that two others explain where it is computed from them
GAIN = 0.25  # and what they leave unexplained, against what the better of them leaves alone
LEAST_ROWS = 12
WORK = 4e11  # multiplications of the search over all pairs of numbers: rows are sampled down to it, then all confirm
FEWEST_SAMPLED = 100
EARLIEST, LATEST = 1900_01_01, 2199_12_31  # whole numbers that may be dates


def moments(feature: Feature, column: pd.Series) -> np.ndarray | None:
    """`[patients]` days since 1970 of a column of dates, or of texts or numbers (20240131) that read as such; else None."""
    if feature.kind == "datetime":
        return ((column - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)
    known = column.dropna()
    if feature.kind == "number":
        numbers = numbers_of(known)
        if not len(known) or not ((numbers % 1 == 0) & numbers.between(EARLIEST, LATEST)).all():
            return None
        known = numbers.astype("int64").astype(str)
    read = days([str(value) for value in known])
    if not len(known) or np.isnan(read).all():
        return None
    found = np.full(len(column), np.nan)
    found[column.notna().to_numpy()] = read
    return found


@threadpool_limits.wrap(limits=1)
def find(train: pd.DataFrame, features: Sequence[Feature], statistics: Mapping[str, ValueStatistics]) -> pd.DataFrame:
    """Who gives whom away, one row each: `target`, `first`, `second` ("" for a single date), `nats`, `reason`.

    `nats` is what the two tell about the target: mutual information, for arithmetic that of a Gaussian with the same
    share of explained variance. Whether that is too much is for `leakage.hidden_with` to say.
    """
    visible = [feature for feature in features if feature.visible]
    dates = {feature.name: found for feature in visible if (found := moments(feature, train[feature.name])) is not None}
    numbers = {
        feature.name: numbers_of(train[feature.name]).to_numpy() for feature in visible if feature.kind == "number"
    }
    rows = _of_dates(train, visible, dates, statistics)
    table = pd.DataFrame({**numbers, **dates}, index=range(len(train)), dtype=np.float64)
    targets = [name for name in numbers if name in statistics]
    rows += [(each.target, each.first, each.second, each.nats, ARITHMETIC) for each in arithmetic(table, targets)]
    for target, names, explained in of_several(table.iloc[_sampled(len(table), MAX_ROWS)], targets):
        rows += [(target, name, "", gaussian_nats(explained), SEVERAL) for name in names]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def nothing() -> pd.DataFrame:
    """A table without relations."""
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
    """Codes from 1 on by quantiles; 0 where missing."""
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
    """`[left, right]` nats over the rows where both are present; 0 where as much comes by `chance` or less seldom."""
    joint = _one_hot(left).T @ _one_hot(right)
    rows, columns = _starts(left), _starts(right)
    counts = joint.astype(np.float64)
    terms = counts * np.log(np.where(counts > 0, counts, 1.0))
    blocks = lambda values: np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)  # noqa: E731
    by_row, by_column = np.add.reduceat(counts, columns, axis=1), np.add.reduceat(counts, rows, axis=0)
    total = blocks(counts)
    own = lambda values: values * np.log(np.where(values > 0, values, 1.0))  # noqa: E731
    some = np.maximum(total, 1)
    plug_in = (
        blocks(terms) - np.add.reduceat(own(by_row), rows, axis=0) - np.add.reduceat(own(by_column), columns, axis=1)
    ) / some + np.log(some)
    levels = np.add.reduceat(by_row > 0, rows, axis=0, dtype=np.int64)
    others = np.add.reduceat(by_column > 0, columns, axis=1, dtype=np.int64)
    freedom = np.maximum((levels - 1) * (others - 1), 1)
    nats = plug_in - freedom / (2 * some)  # less its first-order bias
    return np.where((2 * total * plug_in > chi2.isf(chance, freedom)) & (total >= LEAST_ROWS), nats, 0.0)


def _one_hot(columns: Sequence[np.ndarray]) -> np.ndarray:
    """`[rows, codes of all columns]`; a missing value, code 0, has no code of its own."""
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
    """`target` is computed from `first` and `second`; `explained` is the share of its variance (of its logarithm's)."""

    target: str
    first: str
    second: str
    logarithms: bool
    explained: float

    @property
    def nats(self) -> float:
        """What the two tell about the target, were all three Gaussian."""
        return gaussian_nats(self.explained)


def gaussian_nats(explained: float) -> float:
    """Mutual information of Gaussians of which one explains this share of the other's variance."""
    return float(-0.5 * np.log(max(1 - explained, 1e-12)))


def arithmetic(table: pd.DataFrame, targets: Sequence[str]) -> list[Computed]:
    """The targets that two other columns of `table` (float64, NaN where missing) compute, and from which.

    Not listed are two of which one does it alone. Above a size the search reads a sample of rows, and all rows confirm.
    """
    found: dict[tuple[str, str, str], Computed] = {}
    width = max(table.shape[1], 1)
    sample = _sampled(len(table), int(min(MAX_ROWS, max(FEWEST_SAMPLED, WORK / (20 * width**3)))))
    for logarithms in (False, True):
        usable = table.loc[:, (table > 0).sum() == table.notna().sum()] if logarithms else table
        asked = [name for name in targets if name in usable.columns]
        if usable.shape[1] < 3 or not asked:
            continue
        values = pd.DataFrame(np.log(usable)) if logarithms else usable
        part = values.iloc[sample]
        for first, second, target in _search(part, asked):
            explained = _fit(values[target], values[first], values[second])
            if explained >= EXACT:
                found.setdefault((target, first, second), Computed(target, first, second, logarithms, explained))
    return list(found.values())


def _search(table: pd.DataFrame, targets: Sequence[str]) -> list[tuple[str, str, str]]:
    present = table.notna().to_numpy()
    kept = [i for i in range(table.shape[1]) if present[:, i].sum() >= LEAST_ROWS and table.iloc[:, i].std() > 0]
    names = [str(table.columns[i]) for i in kept]
    part = table.iloc[:, kept]
    masks = part.notna().to_numpy(dtype=np.float64)
    scaled = ((part - part.mean()) / part.std()).fillna(0.0).to_numpy(dtype=np.float64)
    places = [place for place, name in enumerate(names) if name in set(targets)]
    if len(names) < 3 or not places:
        return []
    tries = len(names) ** 2 / 2 * len(places)
    found: list[tuple[str, str, str]] = []
    for place in places:
        rows = masks[:, place] > 0
        computed = _explained(scaled[rows], masks[rows], scaled[rows, place], tries)
        computed[place] = computed[:, place] = False
        found += [(names[a], names[b], names[place]) for a, b in np.argwhere(np.triu(computed, 1))]
    return found


def _explained(values: np.ndarray, masks: np.ndarray, target: np.ndarray, tries: float) -> np.ndarray:
    """`[columns, columns]` bool: which two together compute the target, over the rows with all three.

    `values` and `masks` (1 where present) are `[rows, columns]`, missing values 0; `target` `[rows]` is never missing.
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
    gained = (1 - both <= GAIN * (1 - alone)) & (1 - alone > 1e-9)  # what tells all alone needs nothing beside it
    return sound & (both >= EXACT) & gained & (chance < FALSE_ALARM)


def _fit(target: pd.Series, first: pd.Series, second: pd.Series) -> float:
    """The share of variance of `target` that a linear fit on the two explains."""
    rows = pd.concat([target, first, second], axis=1).dropna().to_numpy()
    centred = rows - rows.mean(axis=0)
    scale = centred.std(axis=0)
    if len(rows) < LEAST_ROWS or not (scale > 0).all():
        return 0.0
    centred = centred / scale
    weights = np.linalg.lstsq(centred[:, 1:], centred[:, 0], rcond=None)[0]
    return float(1 - ((centred[:, 0] - centred[:, 1:] @ weights) ** 2).sum() / len(rows))
