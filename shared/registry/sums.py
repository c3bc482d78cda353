"""Several shown numbers that together give away another: the Glasgow scale and its three parts, a score and its items.

`relations.arithmetic` tries every two numbers. More than two cannot all be tried, so here they are chosen one after the
other: each time the number that tells most about what the ones before leave open (orthogonal matching pursuit, Pati and
others, 1993). Those that are not needed are left out again at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

MOST = 8  # numbers that are chosen before the search gives up
FEWEST = 3  # two are found elsewhere
EXACT = 0.99  # share of a number's variance that the others explain where it is computed from them
LEAST_STEP = 0.02  # and that each further number must explain for the search to go on
ROWS_A_NUMBER = 6
FALSE_ALARM = 1e-3  # of one registry


def of_several(table: pd.DataFrame, targets: Sequence[str]) -> list[tuple[str, tuple[str, ...], float]]:
    """Each target that a sum of three or more other columns gives, with whatever factors: (target, columns, explained).

    `table` is float64, NaN where missing; `explained` is the share of the target's variance.
    """
    usable = table.loc[:, (table.notna().sum() >= ROWS_A_NUMBER * FEWEST) & (table.std() > 0)]
    if usable.shape[1] <= FEWEST:
        return []
    names = [str(name) for name in usable.columns]
    values = ((usable - usable.mean()) / usable.std()).to_numpy(dtype=np.float64)
    found = []
    for target in (name for name in targets if name in names):
        place = names.index(target)
        aside = [place]  # and what tells it alone or with one other, beside which a sum may still stand
        while 0 < len(chosen := _chosen(values, place, aside)) < FEWEST:
            aside += chosen
        explained = _explained(values, place, chosen)
        tries = len(names) ** len(chosen) * len(targets)
        if chosen and not _by_chance(values, place, chosen, explained, tries):
            found.append((target, tuple(names[other] for other in sorted(chosen)), explained))
    return found


def _chosen(values: np.ndarray, target: int, aside: Sequence[int]) -> list[int]:
    """The columns of `values` `[rows, columns]` that the target is computed from, without those `aside`; none where it is not."""
    chosen: list[int] = []
    left, explained = values[:, target].copy(), 0.0
    while len(chosen) < MOST:
        told = _told(values, left)
        told[[*aside, *chosen]] = 0.0
        best = int(told.argmax())
        more = _explained(values, target, [*chosen, best])
        # Where no column tells anything, `best` is the first, and may be one that was put aside: that would go on for ever.
        if told[best] == 0 or more - explained < LEAST_STEP:
            return []
        chosen, explained = [*chosen, best], more
        if explained >= EXACT:
            return _needed(values, target, chosen)
        left = _left(values, target, chosen)
    return []


def _needed(values: np.ndarray, target: int, chosen: Sequence[int]) -> list[int]:
    kept = list(chosen)
    for column in chosen:
        others = [other for other in kept if other != column]
        if others and _explained(values, target, others) >= EXACT:
            kept = others
    return kept


def _told(values: np.ndarray, left: np.ndarray) -> np.ndarray:
    """`[columns]` squared correlation of each column with `left` `[rows]`, over the rows that have both."""
    rows = ~np.isnan(left)
    part, rest = values[rows], left[rows]
    present = ~np.isnan(part)
    part = np.where(present, part, 0.0)
    count = np.maximum(present.sum(axis=0), 1)
    mean, mean_rest = part.sum(axis=0) / count, rest @ present / count
    spread = (part**2).sum(axis=0) / count - mean**2
    spread_rest = (rest**2) @ present / count - mean_rest**2
    shared = rest @ part / count - mean * mean_rest
    sound = (count >= ROWS_A_NUMBER * FEWEST) & (spread > 1e-9) & (spread_rest > 1e-12)
    return np.where(sound, shared**2 / np.where(sound, spread * spread_rest, 1.0), 0.0)


def _fit(values: np.ndarray, target: int, chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that have the target and all that is chosen, and of these the target and what a linear fit leaves."""
    rows = np.flatnonzero(~np.isnan(values[:, [target, *chosen]]).any(axis=1))
    inputs = np.column_stack([values[rows][:, chosen], np.ones(len(rows))])
    wanted = values[rows, target]
    weights = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    return rows, wanted, wanted - inputs @ weights


def _left(values: np.ndarray, target: int, chosen: Sequence[int]) -> np.ndarray:
    rows, _, rest = _fit(values, target, chosen)
    left = np.full(len(values), np.nan)
    left[rows] = rest
    return left


def _explained(values: np.ndarray, target: int, chosen: Sequence[int]) -> float:
    if not chosen:
        return 0.0
    rows, wanted, rest = _fit(values, target, chosen)
    if len(rows) < ROWS_A_NUMBER * (len(chosen) + 1) or wanted.std() < 1e-9:
        return 0.0
    return float(1 - (rest**2).mean() / wanted.var())


def _by_chance(values: np.ndarray, target: int, chosen: Sequence[int], explained: float, tries: float) -> bool:
    rows = len(_fit(values, target, chosen)[0])
    return tries * max(1 - explained, 1e-15) ** ((rows - len(chosen) - 1) / 2) > FALSE_ALARM
