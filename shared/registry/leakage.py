"""Which features give another one away: mutual information between columns (spec: registry, a.2), and what to hide.

The estimate is the original's: for each target the rows where it is present, a missing feature value counts as -1,
the scikit-learn estimators with three neighbours, nats. Mended: training patients only, a fixed random state, and a
column of free text counts by its presence (the original left it out, so `Other procedure: ...` answered whether there
was one).
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
MAX_ROWS = 2_000  # more training patients are sampled down to this: the cost grows faster than the estimate improves
MAX_CATEGORIES = 30  # a text column with more distinct values counts by its presence only
MAX_BINS, MIN_BINS, ROWS_IN_CELL = 8, 3, 5  # quantiles of a number: as many as keep 5 rows in a cell of two numbers
RELATIVE_CUTOFF = 0.5  # of the entropy of a target with a known set of values

# A pair is estimated with scikit-learn where its binned value reaches this share of the lowest cutoff that could hide
# it; pairs below keep the binned value. Binning into at most 8 quantiles loses some information. Among the 13,600 pairs
# of the original's matrix for 1,600 patients, the lowest share of any pair that is hidden was 0.76 (a target present in
# 266), the next 0.88: half the cutoff is a wide margin (a test compares with the full computation).
SCREEN = 0.5


@dataclasses.dataclass(frozen=True)
class _Column:
    values: np.ndarray  # [patients] float64: codes, or numbers; -1 where missing
    present: np.ndarray  # [patients] bool
    discrete: bool
    target: bool  # free text has no column of its own in the matrix


# Thousands of small computations: on a machine that others use, threads made them ten times slower, not faster.
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
    """Mutual information in nats: column = target, row = feature, NaN on the diagonal and where not defined.

    `ordered` are categories that have an order and so count as numbers; `reference` is the datetime that all others are
    counted from, in minutes, and is itself left out; categories in `unknown` count as missing. Values matter up to
    `cutoff`: pairs that cannot reach it are screened out by a cheaper estimate (0 for `screen` estimates every pair with
    scikit-learn). An ordered category that takes a value outside its levels counts as unordered.
    """
    if len(train) > MAX_ROWS:
        rows = np.sort(generator(RANDOM_STATE, "leakage rows").choice(len(train), MAX_ROWS, replace=False))
        train = train.iloc[rows]
    columns = _columns(train, features, ordered or {}, reference, unknown)
    names = list(columns)
    if not names:  # a registry that asks for no column, only for what its timeline shows
        return pd.DataFrame(index=names, columns=names, dtype=np.float64)
    rough = binned(columns)
    result = np.full((len(names), len(names)), np.nan)
    for t, target in enumerate(names):
        column = columns[target]
        if not column.target or column.present.sum() < 3:
            continue
        if progress:
            progress(target)
        result[:, t] = rough[:, t]
        threshold = screen * lowest_cutoff(statistics.get(target), cutoff)
        chosen = [
            f
            for f in range(len(names))
            if f != t and rough[f, t] >= threshold and _can_be_estimated(column, columns[names[f]])
        ]
        if chosen and column.present.sum() > NEIGHBOURS:
            result[chosen, t] = _estimate(column, [columns[names[f]] for f in chosen])
        result[t, t] = np.nan
    return pd.DataFrame(result, index=names, columns=names)


def lowest_cutoff(statistics: ValueStatistics | None, cutoff: float) -> float:
    """The mutual information in nats above which a feature is hidden when the target with `statistics` is asked for."""
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
    """The features that must not be shown when `target` is asked for.

    Those with more than `cutoff` nats about it (strict, as in the original), those of its leak group, and, where the
    target takes one of a known set of values, those with more than half of its entropy: a binary target cannot exceed
    0.69 nats, so the absolute cutoff of 0.5 would rarely protect it (spec: registry, quirk 14). Of `relations` (see
    `shared.registry.relations`) that tell as much, both features, unless one of them is hidden anyway.
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
        telling = relations[(relations["target"] == target) & (relations["nats"] > lowest)]
        pairs = list(zip(telling["first"], telling["second"], strict=True))
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
    """What is hidden with each feature that can be asked for, and why: one row for each pair.

    Columns: `asked`, `hidden`, `nats` between the two (NaN where unknown; of a relation what its two tell together), the
    `cutoff` that holds for the one asked for, and `reason`: "nats", "half of its entropy", "leak group", "date",
    "difference in time with ..." or "arithmetic with ...", and "later section" for those of `later` (see `causal`).
    """
    groups = {feature.name: feature.leak_group for feature in features}
    rows: list[tuple[str, str, float, float, str]] = []
    for target in statistics:
        hidden = hidden_with(
            target, cutoff, leakage=leakage, features=features, statistics=statistics, relations=relations
        )
        after = frozenset() if later is None else frozenset(later.get(target, ())) - hidden
        lowest = lowest_cutoff(statistics[target], cutoff)
        related = {} if relations is None else _related(relations, target, lowest)
        for name in (feature.name for feature in features if feature.name in hidden | after):
            known = target in leakage.columns and name in leakage.index
            nats = float(leakage.loc[name, target]) if known else np.nan  # type: ignore[arg-type]
            reasons = ["later section"] if name in after else []
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
    """For each feature of a relation that hides it from `target`: the nats of the strongest, and what it is."""
    found: dict[str, tuple[float, str]] = {}
    telling = relations[(relations["target"] == target) & (relations["nats"] > lowest)]
    telling = telling.assign(alone=telling["second"] == "")  # what tells by itself is hidden for that
    for row in telling.sort_values(["alone", "nats"], ascending=False, kind="stable").to_dict("records"):
        first, second, reason = str(row["first"]), str(row["second"]), str(row["reason"])
        for name, other in ((first, second), (second, first)):
            if name:
                found.setdefault(name, (float(row["nats"]), f"{reason} with {other}" if other else reason))
    return found


def most_informative(
    names: Sequence[str], count: int, *, leakage: pd.DataFrame, hidden: Mapping[str, frozenset[str]]
) -> list[str]:
    """The `count` of `names` that share most mutual information with the others, in the order of `names`.

    Pairs that hide each other (`hidden`, as `hidden_with` gives it) count nothing: of a group that says the same thing over
    and over, each is judged by what it tells about the rest.
    """
    known = [name for name in names if name in leakage.columns]
    scores = leakage.loc[known, known].to_numpy(dtype=np.float64, copy=True)
    np.fill_diagonal(scores, 0.0)
    for column, target in enumerate(known):
        scores[[row for row, name in enumerate(known) if name in hidden[target]], column] = 0.0
    chosen = {known[i] for i in np.argsort(-np.nan_to_num(scores).sum(axis=0), kind="stable")[:count]}
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
    """Mutual information of all pairs on codes: `[feature, target]`, over the rows where the target is present.

    Numbers are coded by their quantiles, missing values have a code of their own. Counts of all pairs at once come from
    one product of one-hot matrices. The plug-in estimate less its first-order bias (Miller and Madow, 1955).
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
    information = _entropy_terms(counts)
    result = np.full((len(codes), len(codes)), np.nan)
    for t, column in enumerate(columns.values()):
        total = column.present.sum()
        if total == 0:
            continue
        block = slice(starts[t], starts[t + 1])
        margin, own = counts[:, block].sum(axis=1), targets[:, block].sum(axis=0).astype(np.float64)
        joint = np.add.reduceat(information[:, block].sum(axis=1), starts[:-1])
        by_feature = np.add.reduceat(_entropy_terms(margin), starts[:-1])
        plug_in = (joint - by_feature - _entropy_terms(own).sum()) / total + np.log(total)
        cells = np.add.reduceat((counts[:, block] > 0).sum(axis=1), starts[:-1])
        levels = np.add.reduceat(margin > 0, starts[:-1], dtype=np.int64)
        bias = (cells - levels - (own > 0).sum() + 1) / (2 * total)
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
    """scikit-learn compares numbers within a category: it fails where no category has two of the target's rows."""
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
        # scikit-learn wonders about numeric class codes with many classes; they are codes here.
        warnings.simplefilter("ignore", UserWarning)
        return estimator(
            table,
            target.values[rows],
            discrete_features=discrete,
            n_neighbors=NEIGHBOURS,
            random_state=RANDOM_STATE,
        )
