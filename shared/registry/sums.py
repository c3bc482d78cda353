"""Finds three or more shown numbers whose sum reveals another, such as the three parts of the Glasgow coma scale.

`relations.arithmetic` tries every pair of numbers. Larger sets are too many to be tried, so they are built step by step: each
step adds the number that explains most of what is still unexplained (orthogonal matching pursuit, Pati and others, 1993). At
the end, numbers that are not needed are removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

MOST = 8  # the search gives up after so many numbers
FEWEST = 3  # `relations.arithmetic` finds pairs
EXACT = 0.99  # numbers compute another if they explain at least this share of its variance
LEAST_STEP = 0.02  # the search goes on only while each further number explains at least this share
ROWS_A_NUMBER = 6  # a set of numbers needs at least so many rows for each of them
FALSE_ALARM = 1e-3  # the probability that any unrelated set of one registry is reported


def of_several(table: pd.DataFrame, targets: Sequence[str]) -> list[tuple[str, tuple[str, ...], float]]:
    """The targets that are a weighted sum of three or more other columns, as (target, columns, explained).

    `table` is float64, NaN where missing. `explained` is the share of the target's variance that the sum explains.
    """
    usable = table.loc[:, (table.notna().sum() >= ROWS_A_NUMBER * FEWEST) & (table.std() > 0)]
    if usable.shape[1] <= FEWEST:
        return []
    names = [str(name) for name in usable.columns]
    values = ((usable - usable.mean()) / usable.std()).to_numpy(dtype=np.float64)
    sums = []
    for target in (name for name in targets if name in names):
        target_place = names.index(target)
        # One or two columns that explain the target alone are left out, since there may also be a sum of others.
        left_out = [target_place]
        while 0 < len(chosen := _chosen(values, target_place, left_out)) < FEWEST:
            left_out += chosen
        explained = _explained(values, target_place, chosen)
        tries = len(names) ** len(chosen) * len(targets)
        if chosen and not _by_chance(values, target_place, chosen, explained, tries):
            sums.append((target, tuple(names[column] for column in sorted(chosen)), explained))
    return sums


def _chosen(values: np.ndarray, target: int, left_out: Sequence[int]) -> list[int]:
    """The columns of `values` `[rows, columns]` from which the target is computed; empty if there are none.

    Columns in `left_out` are not used.
    """
    chosen: list[int] = []
    residual, explained = values[:, target].copy(), 0.0
    while len(chosen) < MOST:
        correlation = _squared_correlation(values, residual)
        correlation[[*left_out, *chosen]] = 0.0
        best = int(correlation.argmax())
        now_explained = _explained(values, target, [*chosen, best])
        # If no column is correlated, `best` is column 0, which may be one that is left out: the search would never end.
        if correlation[best] == 0 or now_explained - explained < LEAST_STEP:
            return []
        chosen, explained = [*chosen, best], now_explained
        if explained >= EXACT:
            return _needed(values, target, chosen)
        residual = _residual(values, target, chosen)
    return []


def _needed(values: np.ndarray, target: int, chosen: Sequence[int]) -> list[int]:
    """The chosen columns without those that the others make unnecessary."""
    needed = list(chosen)
    for column in chosen:
        others = [other for other in needed if other != column]
        if others and _explained(values, target, others) >= EXACT:
            needed = others
    return needed


def _squared_correlation(values: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Squared correlation of each column with `residual` `[rows]`: `[columns]`, over the rows where both are present."""
    rows = ~np.isnan(residual)
    part, rest = values[rows], residual[rows]
    present = ~np.isnan(part)
    part = np.where(present, part, 0.0)
    count = np.maximum(present.sum(axis=0), 1)
    mean, mean_rest = part.sum(axis=0) / count, rest @ present / count
    variance = (part**2).sum(axis=0) / count - mean**2
    variance_rest = (rest**2) @ present / count - mean_rest**2
    covariance = rest @ part / count - mean * mean_rest
    usable = (count >= ROWS_A_NUMBER * FEWEST) & (variance > 1e-9) & (variance_rest > 1e-12)
    return np.where(usable, covariance**2 / np.where(usable, variance * variance_rest, 1.0), 0.0)


def _least_squares(values: np.ndarray, target: int, chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A linear fit of the target on the chosen columns: the rows where all are present, their targets, their residuals."""
    rows = np.flatnonzero(~np.isnan(values[:, [target, *chosen]]).any(axis=1))
    inputs = np.column_stack([values[rows][:, chosen], np.ones(len(rows))])
    targets = values[rows, target]
    weights = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    return rows, targets, targets - inputs @ weights


def _residual(values: np.ndarray, target: int, chosen: Sequence[int]) -> np.ndarray:
    """What a linear fit on the chosen columns leaves unexplained: `[rows]`, NaN where a value is missing."""
    rows, _, rest = _least_squares(values, target, chosen)
    residual = np.full(len(values), np.nan)
    residual[rows] = rest
    return residual


def _explained(values: np.ndarray, target: int, chosen: Sequence[int]) -> float:
    """The share of the target's variance that a linear fit on the chosen columns explains; 0 with too few rows."""
    if not chosen:
        return 0.0
    rows, targets, rest = _least_squares(values, target, chosen)
    if len(rows) < ROWS_A_NUMBER * (len(chosen) + 1) or targets.std() < 1e-9:
        return 0.0
    return float(1 - (rest**2).mean() / targets.var())


def _by_chance(values: np.ndarray, target: int, chosen: Sequence[int], explained: float, tries: float) -> bool:
    """Whether unrelated numbers would explain as much with a probability above `FALSE_ALARM`, after so many tries."""
    rows = len(_least_squares(values, target, chosen)[0])
    return tries * max(1 - explained, 1e-15) ** ((rows - len(chosen) - 1) / 2) > FALSE_ALARM
