"""Which features reveal another one: mutual information between columns (spec: registry, a.2), and what to hide.

The estimate is the original's: for each target it uses the rows where the target is present; a missing feature value counts
as -1; scikit-learn's estimators use three neighbours; the unit is nats. Corrected here: only training patients are used, the
random state is fixed, and a column of free text counts by whether it is present. (The original left free text out, so a shown
`Other procedure: ...` revealed that there was another procedure.)
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
from threadpoolctl import threadpool_limits

from shared.randomness import generator
from shared.registry.features import Feature, numbers_of
from shared.registry.statistics import ValueStatistics

NEIGHBOURS = 3
RANDOM_STATE = 42
MAX_ROWS = 2_000  # of more training patients a sample is used: the cost grows faster than the estimate improves
MAX_CATEGORIES = 30  # of a text column with more distinct values only its presence counts
MAX_BINS, MIN_BINS, ROWS_IN_CELL = 8, 3, 5  # bins of a number: so many that two numbers have about 5 rows in each cell
RELATIVE_CUTOFF = 0.5  # of the entropy of a target with a known set of values

# First every pair is estimated cheaply, with binned values. scikit-learn estimates a pair only if its binned value reaches
# this share of the cutoff above which it is hidden; other pairs keep the binned value. Binning loses some information. In the
# original's matrix (13,600 pairs, 1,600 patients), the binned value of a hidden pair was at least 0.76 of the cutoff, so 0.5
# leaves a wide margin. A test compares with the full computation.
SCREEN = 0.5


@dataclasses.dataclass(frozen=True)
class _Column:
    values: np.ndarray  # [patients] float64: codes, or numbers; -1 where missing
    present: np.ndarray  # [patients] bool
    discrete: bool
    target: bool  # whether it can be a target; free text cannot


# The work is thousands of small computations. On a busy machine, threads made them ten times slower.
@threadpool_limits.wrap(limits=1)
def mutual_information(
    train: pd.DataFrame,
    features: Sequence[Feature],
    statistics: Mapping[str, ValueStatistics],
    *,
    ordered: Mapping[str, Sequence[str]] | None = None,
    reference: str | None = None,
    cutoff: float = 0.5,
    screen: float = SCREEN,
    unknown: Collection[str] = (),
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Mutual information of all pairs of features in nats: column = target, row = feature.

    It is NaN on the diagonal and where it is not defined. `ordered` gives the levels of categories that have an order and
    count as numbers; one with a value outside its levels counts as unordered. `reference` names the datetime from which others
    are counted in minutes; it is not in the matrix. Categories in `unknown` count as missing. Only values around `cutoff`
    matter, so pairs far below it keep a cheaper estimate (see `SCREEN`; `screen=0` estimates every pair with scikit-learn).
    `progress` is called with the name of each target.
    """
    if len(train) > MAX_ROWS:
        rows = np.sort(generator(RANDOM_STATE, "leakage rows").choice(len(train), MAX_ROWS, replace=False))
        train = train.iloc[rows]
    columns = _columns(train, features, ordered or {}, reference, unknown)
    names = list(columns)
    if not names:  # a registry that asks for no column, only for what its timeline shows
        return pd.DataFrame(index=names, columns=names, dtype=np.float64)
    binned_nats = binned(columns)
    result = np.full((len(names), len(names)), np.nan)
    for t, target in enumerate(names):
        column = columns[target]
        if not column.target or column.present.sum() < 3:
            continue
        if progress:
            progress(target)
        result[:, t] = binned_nats[:, t]
        threshold = screen * lowest_cutoff(statistics.get(target), cutoff)
        chosen = [
            f
            for f in range(len(names))
            if f != t and binned_nats[f, t] >= threshold and _can_be_estimated(column, columns[names[f]])
        ]
        if chosen and column.present.sum() > NEIGHBOURS:
            result[chosen, t] = _estimate(column, [columns[names[f]] for f in chosen])
        result[t, t] = np.nan
    return pd.DataFrame(result, index=names, columns=names)


def lowest_cutoff(statistics: ValueStatistics | None, cutoff: float) -> float:
    """The mutual information in nats above which a feature is hidden when a target with these statistics is asked for.

    It is `cutoff`, or less for a target with a known set of values: `RELATIVE_CUTOFF` times its entropy.
    """
    if statistics is not None and statistics.finite:
        return min(cutoff, RELATIVE_CUTOFF * statistics.entropy)
    return cutoff


def hidden_with(
    target: str,
    cutoff: float,
    *,
    leakage: pd.DataFrame,
    features: Sequence[Feature],
    statistics: Mapping[str, ValueStatistics],
    relations: pd.DataFrame | None = None,
) -> frozenset[str]:
    """The names of the features that must not be shown when `target` is asked for.

    These are the features whose mutual information with it is above `cutoff` nats (not equal to it, as in the original), and
    the features of its leak group. If the target has a known set of values, half of its entropy is a second limit: a binary
    target has at most 0.69 nats, so the absolute cutoff of 0.5 would rarely protect it (spec: registry, quirk 14). From each
    pair in `relations` (see `shared.registry.relations`) that tells more than the limit, both features are hidden, unless one
    of them is hidden already.
    """
    hidden = set()
    if target in leakage.columns:
        column = leakage[target]
        hidden = set(column.index[column.to_numpy() > lowest_cutoff(statistics.get(target), cutoff)])
    groups = {feature.name: feature.leak_group for feature in features}
    group = groups.get(target)
    if group is not None:
        hidden |= {name for name, other in groups.items() if other == group}
    if relations is not None and len(relations):
        lowest = lowest_cutoff(statistics.get(target), cutoff)
        above = relations[(relations["target"] == target) & (relations["nats"] > lowest)]
        pairs = list(zip(above["first"], above["second"], strict=True))
        hidden |= {first for first, second in pairs if not second}
        hidden |= {name for pair in pairs if not hidden.intersection(pair) for name in pair}
    return frozenset(hidden - {target})


def leak_audit(
    features: Sequence[Feature],
    statistics: Mapping[str, ValueStatistics],
    leakage: pd.DataFrame,
    *,
    cutoff: float,
    relations: pd.DataFrame | None = None,
    later: Mapping[str, Collection[str]] | None = None,
) -> pd.DataFrame:
    """What is hidden when a feature is asked for, and why: one row for each pair of features.

    Columns: `asked` (the feature that is asked for) and `hidden` (the feature that is not shown); `nats`, the mutual
    information of the two (NaN if unknown; of a relation, what its two features tell together); `cutoff`, the limit for the
    feature that is asked for; and `reason`: "nats", "half of its entropy", "leak group", "date", "difference in time with ...",
    "arithmetic with ..." or "later section". `later` gives, for each feature, those of later sections, if these are hidden too.
    """
    groups = {feature.name: feature.leak_group for feature in features}
    rows: list[tuple[str, str, float, float, str]] = []
    for target in statistics:
        hidden = hidden_with(
            target, cutoff, leakage=leakage, features=features, statistics=statistics, relations=relations
        )
        only_later = frozenset() if later is None else frozenset(later.get(target, ())) - hidden
        lowest = lowest_cutoff(statistics[target], cutoff)
        related = {} if relations is None else _related(relations, target, lowest)
        for name in (feature.name for feature in features if feature.name in hidden | only_later):
            known = target in leakage.columns and name in leakage.index
            nats = float(leakage.loc[name, target]) if known else np.nan  # type: ignore[arg-type]
            reasons = ["later section"] if name in only_later else []
            if name in hidden and nats > lowest:
                reasons = ["nats" if nats > cutoff else "half of its entropy"]
            if name in hidden and groups[target] is not None and groups[target] == groups[name]:
                reasons.append("leak group")
            if name in hidden and not reasons:
                nats, reason = related[name]
                reasons = [reason]
            rows.append((target, name, nats, lowest, " and ".join(reasons)))
    return pd.DataFrame(rows, columns=["asked", "hidden", "nats", "cutoff", "reason"])


def _related(relations: pd.DataFrame, target: str, lowest: float) -> dict[str, tuple[float, str]]:
    """For each feature in a relation that reveals `target`: the nats of its strongest relation, and the reason as a text."""
    strongest: dict[str, tuple[float, str]] = {}
    above = relations[(relations["target"] == target) & (relations["nats"] > lowest)]
    above = above.assign(
        alone=above["second"] == ""
    )  # a feature that reveals the target alone is listed with that reason
    for row in above.sort_values(["alone", "nats"], ascending=False, kind="stable").to_dict("records"):
        first, second, reason = str(row["first"]), str(row["second"]), str(row["reason"])
        for name, other in ((first, second), (second, first)):
            if name:
                strongest.setdefault(name, (float(row["nats"]), f"{reason} with {other}" if other else reason))
    return strongest


def most_informative(
    names: Sequence[str], count: int, *, leakage: pd.DataFrame, hidden: Mapping[str, frozenset[str]]
) -> list[str]:
    """The `count` features of `names` that have the most mutual information with all others, in the order of `names`.

    `hidden` is the result of `hidden_with` for each feature. Pairs in which one hides the other are not counted. So features
    that repeat each other, such as a value and its category, gain nothing from one another.
    """
    in_matrix = [name for name in names if name in leakage.columns]
    scores = leakage.loc[in_matrix, in_matrix].to_numpy(dtype=np.float64, copy=True)
    np.fill_diagonal(scores, 0.0)
    for column, target in enumerate(in_matrix):
        scores[[row for row, name in enumerate(in_matrix) if name in hidden[target]], column] = 0.0
    chosen = {in_matrix[i] for i in np.argsort(-np.nan_to_num(scores).sum(axis=0), kind="stable")[:count]}
    return [name for name in names if name in chosen]


def _columns(
    train: pd.DataFrame,
    features: Sequence[Feature],
    ordered: Mapping[str, Sequence[str]],
    reference: str | None,
    unknown: Collection[str] = (),
) -> dict[str, _Column]:
    start = train[reference] if reference in train.columns else None
    columns = {}
    for feature in features:
        if feature.name == reference or not feature.visible:
            continue
        column = train[feature.name]
        if unknown and feature.kind == "category":
            column = column.where(~column.isin(list(unknown)), None)
        if feature.kind == "number":
            numbers = numbers_of(column).to_numpy()
            columns[feature.name] = _continuous(numbers)
        elif feature.kind == "datetime" and start is not None:
            minutes = np.floor((column - start).dt.total_seconds().to_numpy(dtype=np.float64) / 60)
            columns[feature.name] = _continuous(minutes)
        elif set(column.dropna()) <= set(ordered.get(feature.name, ())):
            codes = {level: float(code) for code, level in enumerate(ordered.get(feature.name, ()))}
            columns[feature.name] = _continuous(np.array([codes.get(value, np.nan) for value in column]))
        else:
            codes_, levels = pd.factorize(column)
            few = len(levels) <= MAX_CATEGORIES
            values = codes_ if few else np.where(codes_ < 0, -1, 0)
            columns[feature.name] = _Column(values.astype(np.float64), codes_ >= 0, discrete=True, target=few)
    return columns


def _continuous(values: np.ndarray) -> _Column:
    present = ~np.isnan(values)
    return _Column(np.where(present, values, -1.0), present, discrete=False, target=True)


def binned(columns: Mapping[str, _Column]) -> np.ndarray:
    """Mutual information in nats of all pairs of binned columns: `[feature, target]`, over rows where the target is present.

    Numbers are binned by quantiles; missing values have a bin of their own. One product of one-hot matrices counts all pairs
    at once. It is the plug-in estimate minus its first-order bias (Miller and Madow, 1955).
    """
    codes = [_codes(column) for column in columns.values()]
    sizes = [int(code.max(initial=0)) + 1 for code in codes]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    features = np.zeros((len(codes[0]), starts[-1]), dtype=np.float32)
    targets = np.zeros_like(features)
    rows = np.arange(len(features))
    for code, start, column in zip(codes, starts, columns.values(), strict=False):
        features[rows, start + code] = 1
        targets[rows, start + code] = column.present
    counts = (features.T @ targets).astype(np.float64)  # [feature codes, target codes]
    terms = _entropy_terms(counts)
    result = np.full((len(codes), len(codes)), np.nan)
    for t, column in enumerate(columns.values()):
        total = column.present.sum()
        if total == 0:
            continue
        block = slice(starts[t], starts[t + 1])
        feature_counts, target_counts = counts[:, block].sum(axis=1), targets[:, block].sum(axis=0).astype(np.float64)
        joint = np.add.reduceat(terms[:, block].sum(axis=1), starts[:-1])
        by_feature = np.add.reduceat(_entropy_terms(feature_counts), starts[:-1])
        plug_in = (joint - by_feature - _entropy_terms(target_counts).sum()) / total + np.log(total)
        cells = np.add.reduceat((counts[:, block] > 0).sum(axis=1), starts[:-1])
        levels = np.add.reduceat(feature_counts > 0, starts[:-1], dtype=np.int64)
        bias = (cells - levels - (target_counts > 0).sum() + 1) / (2 * total)
        result[:, t] = np.maximum(plug_in - bias, 0.0)
    return result


def _entropy_terms(counts: np.ndarray) -> np.ndarray:
    return counts * np.log(np.where(counts > 0, counts, 1.0))


def _codes(column: _Column) -> np.ndarray:
    if column.discrete:
        return column.values.astype(np.int64) + 1
    codes = np.zeros(len(column.values), dtype=np.int64)
    if column.present.any():
        values = column.values[column.present]
        bins = min(MAX_BINS, max(MIN_BINS, int(np.sqrt(len(values) / ROWS_IN_CELL))))
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
        codes[column.present] = 1 + np.searchsorted(edges, values, side="right")
    return codes


def _can_be_estimated(target: _Column, feature: _Column) -> bool:
    """Whether scikit-learn can estimate this pair. With one number and one category it fails if no category has two rows."""
    if target.discrete == feature.discrete:
        return True
    codes = (target if target.discrete else feature).values[target.present]
    return len(np.unique(codes)) < len(codes)


def _estimate(target: _Column, features: Sequence[_Column]) -> np.ndarray:
    rows = target.present
    table = np.stack([feature.values[rows] for feature in features], axis=1)
    discrete = np.array([feature.discrete for feature in features])
    estimator = mutual_info_classif if target.discrete else mutual_info_regression
    with warnings.catch_warnings():
        # scikit-learn warns if classes are numbers and there are many; here the numbers are codes of classes.
        warnings.simplefilter("ignore", UserWarning)
        return estimator(
            table,
            target.values[rows],
            discrete_features=discrete,
            n_neighbors=NEIGHBOURS,
            random_state=RANDOM_STATE,
        )
