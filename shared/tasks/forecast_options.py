"""Distractors beside a future value, drawn as the original does from its two legacy generators (spec: mimic3, 11.3, 11.4).

Kept with its flaws so that question sets are the paper's: distractors are rounded and sorted while the true value keeps
all its digits, so format and order can give the answer away.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import random
import re
import warnings

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

SEED = 42
OPTIONS = 5
DIFFICULTY = 2.0  # standard deviations between numeric options
FEW_VALUES = 20  # up to this many distinct values are a vocabulary
COMPONENTS = 3
NARROW = 0.1  # a component narrower than this gives no ladder


@dataclasses.dataclass(frozen=True)
class ColumnStatistics:
    """The distribution of one column over all rows.

    `vocab` and `weights` hold up to 20 distinct values as text with their shares, else nothing; `every` all distinct
    values as text, ascending as text; `positive` and `whole` the shares of distinct values that are at least 0 and
    whole; `means`, `stds`, `mixture` the normal components, empty with a vocabulary.
    """

    vocab: tuple[str, ...]
    weights: tuple[float, ...]
    every: tuple[str, ...]
    positive: float
    whole: float
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    mixture: tuple[float, ...] = ()

    def frequency(self, text: str) -> float:
        """How frequent an option is, up to a constant: its share, or the mixture's density."""
        if self.vocab:
            return sum(w for value, w in zip(self.vocab, self.weights, strict=True) if plain(value) == text)
        return sum(self.scores(float(text)))

    def scores(self, number: float) -> list[float]:
        """Each component's weighted density at `number`."""
        return [
            weight * math.exp(-0.5 * ((number - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
            for mean, std, weight in zip(self.means, self.stds, self.mixture, strict=True)
        ]


@threadpool_limits.wrap(limits=1)
def column_statistics(column: pd.Series) -> ColumnStatistics | None:
    """Statistics of a numeric column; None where it has one value only and nothing can be asked."""
    distinct = column.unique()
    if len(distinct) < 2:
        return None
    texts = [str(value) for value in distinct.tolist()]
    positive, whole = float((distinct >= 0).mean()), float((distinct == np.floor(distinct)).mean())
    every = tuple(sorted(set(texts)))
    if len(distinct) <= FEW_VALUES:
        shares = column.value_counts(normalize=True)
        return ColumnStatistics(tuple(texts), tuple(float(shares[v]) for v in distinct), every, positive, whole)
    model = GaussianMixture(n_components=COMPONENTS, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(column.to_numpy(float)[:, None])
    stds = np.sqrt(model.covariances_.ravel())
    parts = (model.means_.ravel(), stds, model.weights_)
    means, stds, mixture = (tuple(float(x) for x in part) for part in parts)
    return ColumnStatistics((), (), every, positive, whole, means, stds, mixture)


class Draws:
    """The two generators that the original seeds anew for every stay; its targets consume them one after the other."""

    def __init__(self) -> None:
        self.python = random.Random(SEED)
        self.numpy = np.random.RandomState(SEED)

    def options(self, label: float, statistics: ColumnStatistics) -> tuple[list[str], int]:
        """The options as texts with the label among them, and the label's position."""
        distractors = self._distractors(label, statistics)
        position = int(self.numpy.randint(len(distractors) + 1))
        distractors.insert(position, plain(str(float(label))))
        return distractors, position

    def _distractors(self, label: float, statistics: ColumnStatistics) -> list[str]:
        text = str(float(label))
        if statistics.vocab and len(statistics.vocab) <= OPTIONS:
            drawn = [value for value in statistics.vocab if value != text]
        else:
            # The original splits the draws at random between values and numbers; with columns of one kind only, all go
            # to one side, but the random number is consumed.
            from_vocabulary = int(self.numpy.binomial(OPTIONS - 1, 1.0 if statistics.vocab else 0.0))
            drawn = self._of_vocabulary(text, statistics) if from_vocabulary else self._numbers(label, text, statistics)
        return sorted({plain(value) for value in drawn} - {plain(text)})

    def _of_vocabulary(self, text: str, statistics: ColumnStatistics) -> list[str]:
        pairs = zip(statistics.vocab, statistics.weights, strict=True)
        others = [(value, weight) for value, weight in pairs if value != text]
        weights = np.array([weight for _, weight in others])
        values = [value for value, _ in others]
        return [str(v) for v in self.numpy.choice(values, OPTIONS - 1, replace=False, p=weights / weights.sum())]

    def _numbers(self, label: float, text: str, statistics: ColumnStatistics) -> list[str]:
        count = OPTIONS - 1
        scores = np.array(statistics.scores(label))
        component = None
        if scores.any():
            component = int(self.numpy.choice(range(COMPONENTS), size=1, p=scores / scores.sum())[0])
        if component is None or statistics.stds[component] < NARROW:
            return self._any(text, statistics.every, count)
        below = int(self.numpy.randint(count + 1))
        step = DIFFICULTY * statistics.stds[component]
        ladder = [label + (i - below) * step for i in range(count + 1) if i != below]
        if statistics.positive > 0.95:
            ladder = [value for value in ladder if value >= 0]
        return [str(round(value) if statistics.whole > 0.9 else round(value, 1)) for value in ladder]

    def _any(self, text: str, every: tuple[str, ...], count: int) -> list[str]:
        """A sample of all values but `text`, without a copy of what may be many."""
        place = bisect.bisect_left(every, text)
        present = place < len(every) and every[place] == text
        chosen = self.python.sample(range(len(every) - present), count)
        return [every[index + (present and index >= place)] for index in chosen]


def plain(text: str) -> str:
    """A number's text without trailing zeros."""
    return re.sub(r"(\.\d*?[1-9])0+$", r"\1", re.sub(r"(\d)\.0+$", r"\1", text))
