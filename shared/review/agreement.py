"""Agreement of raters: Krippendorff's alpha, which corrects for chance and allows missing ratings, and the share of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

Scale = Literal["nominal", "ordinal", "interval"]


def alpha(ratings: np.ndarray, scale: Scale) -> float | None:
    """Krippendorff's alpha of ratings `[raters, items]`, NaN where a rater gave none.

    1 is perfect agreement, 0 is the agreement expected by chance. Items with fewer than two ratings are left out. The result is
    None if no item is left, or all ratings have the same value. Source: Krippendorff, Computing Krippendorff's
    alpha-reliability, 2011, section D.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    if not len(values):
        return None
    counts = np.stack([(ratings == value).sum(axis=0) for value in values], axis=1).astype(float)  # [items, values]
    counts = counts[counts.sum(axis=1) >= 2]
    totals = counts.sum(axis=0)
    if (totals > 0).sum() < 2:
        return None
    size = counts.sum(axis=1, keepdims=True)
    pairs = (counts[:, :, None] * counts[:, None, :] / (size[:, :, None] - 1)).sum(axis=0)
    pairs -= np.diag((counts / (size - 1)).sum(axis=0))  # a rating is not paired with itself
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    distance = _distances(values, totals, scale)
    return float(1 - (pairs * distance).sum() / (expected * distance).sum())


def _distances(values: np.ndarray, totals: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "nominal":
        return 1.0 - np.eye(len(values))
    if scale == "interval":
        return (values[:, None] - values) ** 2
    middle = np.cumsum(totals) - totals / 2  # the ordinal distance of two values is the number of ratings between them
    return (middle[:, None] - middle) ** 2


def agreed(ratings: Sequence[Sequence[object]]) -> float | None:
    """The share of pairs of ratings on the same item that are equal; None if there is no pair.

    `ratings` has one sequence for each rater, with one rating for each item; a rating that is None is not counted.
    """
    equal = [
        first == second
        for item in zip(*ratings, strict=True)
        for first, second in combinations([rating for rating in item if rating is not None], 2)
    ]
    return sum(equal) / len(equal) if equal else None
