"""The distribution of each feature's values among the training patients (spec: registry, a.3).

The definitions are the original's, with three corrections: only training patients count; a missing value is not a value (the
original offered `nan` as an option); `3` and `3.0` are the same number.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from shared.errors import InputError
from shared.registry.features import Feature, as_number, numbers_of, value_text

SMALL_SPREAD = 0.02  # numbers with a smaller standard deviation are scaled up before the mixture is fitted
FEW_VALUES = 20  # a column with at most so many distinct numbers is treated as a category
COMPONENTS = 3
MIXTURE_SEED = 42

# Names of free-text columns of the sepsis registry. They must not become categories, even if texts repeat.
_DATE_LIKE = re.compile(r"date|time|dat_ou|^tzdt$")
_FREE_TEXT = {
    "sepsisinkcd",
    "othernonsurgprocedure",
    "operationname",
    "gramposot",
    "gramnegot",
    "bacposspecot",
    "fugusot",
}


@dataclasses.dataclass(frozen=True)
class ValueStatistics:
    """The distribution of one feature.

    `vocab` are the categories in order of first appearance, and `weights` `[categories]` the share of rows of each; a number
    with at most 20 distinct values is a category too. `float_ratio` is distinct numbers / distinct values: 0 for a category, 1
    for a number, between the two for numbers mixed with texts. `all_vocab` are all distinct values as texts. `means`, `stds`
    and `mixture` (the weights), each `[3]`, are a Gaussian mixture of the numbers; they are 0 if there are no numbers.
    """

    vocab: tuple[str, ...]
    weights: np.ndarray
    float_ratio: float
    all_vocab: tuple[str, ...]
    means: np.ndarray
    stds: np.ndarray
    mixture: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether the feature has a known set of values: a category, or a number with few distinct values."""
        return self.float_ratio == 0

    @property
    def entropy(self) -> float:
        """Entropy of the categories in nats."""
        shares = self.weights[self.weights > 0]
        return float(-(shares * np.log(shares)).sum())

    def density(self, number: float) -> float:
        """The probability density of the Gaussian mixture at `number`."""
        spread = np.maximum(self.stds, 1e-12 * min(1.0, float(self.stds.max()) or 1.0))
        height = self.mixture / (spread * math.sqrt(2 * math.pi))
        return float((height * np.exp(-0.5 * ((number - self.means) / spread) ** 2)).sum())


@threadpool_limits.wrap(limits=1)  # the fits are many and small, so threads would cost more time than they save
def value_statistics(train: pd.DataFrame, features: Sequence[Feature]) -> dict[str, ValueStatistics]:
    """Statistics of each feature that can be asked for: a visible number or category with at least two distinct values."""
    by_name = {}
    for feature in features:
        can_be_asked = feature.visible and feature.kind in ("number", "category")
        if can_be_asked and not is_free_text(feature.name, train[feature.name]):
            statistics = _statistics_of(feature, train[feature.name].dropna())
            if statistics is not None:
                by_name[feature.name] = statistics
    return by_name


def is_free_text(name: str, column: pd.Series) -> bool:
    """Whether a column is left out as free text: its name says so, and it has more than 20 distinct texts."""
    return free_text_name(name) and len({value for value in column.dropna() if np.isnan(as_number(value))}) > FEW_VALUES


def free_text_name(name: str) -> bool:
    """Whether a column name is one of a date, a time or a free text in the sepsis registry."""
    return bool(_DATE_LIKE.search(name)) or name.endswith("desc") or name in _FREE_TEXT


def _statistics_of(feature: Feature, present: pd.Series) -> ValueStatistics | None:
    """The statistics of the values that are not missing; None if there are fewer than two distinct ones."""
    texts = Counter[str]()
    numbers: list[float] = []
    for value in present:
        number = as_number(value) if feature.kind == "number" else np.nan
        if np.isnan(number):
            texts[str(value)] += 1
        else:
            numbers.append(number)
    distinct = dict.fromkeys(numbers)
    if len(distinct) <= FEW_VALUES:
        # Counted again in row order, so that the vocabulary is in order of first appearance.
        texts = Counter(value_text(feature, value) for value in present)
        numbers, distinct = [], {}
    total = len(distinct) + len(texts)
    if total < 2:
        return None
    counts = np.array(list(texts.values()), dtype=np.float64)
    means, stds, mixture = fit_mixture(np.array(numbers))
    return ValueStatistics(
        vocab=tuple(texts),
        weights=counts / max(counts.sum(), 1.0),
        float_ratio=len(distinct) / total,
        all_vocab=tuple(sorted({*texts, *(value_text(feature, number) for number in distinct)})),
        means=means,
        stds=stds,
        mixture=mixture,
    )


def fit_mixture(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a Gaussian mixture to `numbers` `[values]`: its means, standard deviations and weights, each `[3]`.

    All are 0 if there are no numbers.
    """
    if not len(numbers):
        return np.zeros(COMPONENTS), np.zeros(COMPONENTS), np.zeros(COMPONENTS)
    spread = float(np.std(numbers))
    # scikit-learn adds 1e-6 to every variance, which is too much for numbers with a very small spread.
    scale = 10.0 ** math.floor(math.log10(spread)) if 0 < spread < SMALL_SPREAD else 1.0
    model = GaussianMixture(COMPONENTS, random_state=MIXTURE_SEED)
    with warnings.catch_warnings():
        # The original stops after 100 iterations too, and uses the last estimate.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(numbers[:, None] / scale)
    return model.means_.ravel() * scale, np.sqrt(model.covariances_.ravel()) * scale, model.weights_


def to_table(statistics: Mapping[str, ValueStatistics]) -> pd.DataFrame:
    """The statistics as a table with one row for each feature; `from_table` reads it."""
    rows = []
    for name, value in statistics.items():
        row = dataclasses.asdict(value)
        rows.append(
            {"feature": name} | {field: list(item) if field != "float_ratio" else item for field, item in row.items()}
        )
    columns = ["feature", *(field.name for field in dataclasses.fields(ValueStatistics))]
    return pd.DataFrame(rows, columns=columns)


def from_table(table: pd.DataFrame, where: str) -> dict[str, ValueStatistics]:
    """Statistics from the output of `to_table`. Raises InputError, with `where` in the message, if a column is missing."""
    fields = [field.name for field in dataclasses.fields(ValueStatistics)]
    missing = [name for name in ["feature", *fields] if name not in table.columns]
    if missing:
        raise InputError(f"{where}: these columns are missing: {', '.join(missing)}")
    result = {}
    for row in table.to_dict("records"):
        arrays = {name: np.asarray(row[name], dtype=np.float64) for name in ("weights", "means", "stds", "mixture")}
        result[str(row["feature"])] = ValueStatistics(
            vocab=tuple(row["vocab"]),
            float_ratio=float(row["float_ratio"]),
            all_vocab=tuple(row["all_vocab"]),
            **arrays,
        )
    return result


def training_numbers(train: pd.DataFrame, name: str) -> np.ndarray:
    """The numbers of column `name` without missing values: `[values]` float64."""
    return numbers_of(train[name]).dropna().to_numpy()
