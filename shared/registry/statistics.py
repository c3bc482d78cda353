"""How the values of each feature are distributed among the training patients (spec: registry, a.3).

Definitions are the original's; these are mended: only training patients count, a missing value is no value (the
original offered `nan` as an option), and a number is the same value however it was written (`3` and `3.0`).
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

SMALL_SPREAD = 0.02  # a standard deviation below which numbers are fitted on a scale of their own
FEW_VALUES = 20  # up to this many distinct numbers count as categories; more texts than this are a large category
COMPONENTS = 3
MIXTURE_SEED = 42

# Free text that must not become a category of the sepsis registry, however often a text repeats.
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

    `vocab` holds the categories (numbers with at most 20 distinct values included) in order of first appearance, and
    `weights` their share of rows among them. `float_ratio` is distinct numbers / distinct values: 0 for a category, 1
    for a number, and between for numbers mixed with texts. `all_vocab` holds every distinct value as text. The mixture
    describes the numbers; its three arrays are `[3]` and zero where there are none.
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
        """Whether the feature takes one of a known set of values."""
        return self.float_ratio == 0

    @property
    def entropy(self) -> float:
        """Entropy of the categories in nats."""
        shares = self.weights[self.weights > 0]
        return float(-(shares * np.log(shares)).sum())

    def density(self, number: float) -> float:
        """The mixture's density at `number`."""
        spread = np.maximum(self.stds, 1e-12 * min(1.0, float(self.stds.max()) or 1.0))
        height = self.mixture / (spread * math.sqrt(2 * math.pi))
        return float((height * np.exp(-0.5 * ((number - self.means) / spread) ** 2)).sum())


@threadpool_limits.wrap(limits=1)  # many small fits: waiting for threads costs more than they save
def fit(train: pd.DataFrame, features: Sequence[Feature]) -> dict[str, ValueStatistics]:
    """Statistics of every feature that can be asked for: a number or category with at least two distinct values."""
    fitted = {}
    for feature in features:
        asked = feature.visible and feature.kind in ("number", "category")
        if asked and not is_free_text(feature.name, train[feature.name]):
            statistics = _describe(feature, train[feature.name].dropna())
            if statistics is not None:
                fitted[feature.name] = statistics
    return fitted


def is_free_text(name: str, column: pd.Series) -> bool:
    """Whether a text column is left out by its name; only a column with more than 20 distinct texts is."""
    return free_text_name(name) and len({value for value in column.dropna() if np.isnan(as_number(value))}) > FEW_VALUES


def free_text_name(name: str) -> bool:
    """Whether a name is that of a date, a time or a free text of the sepsis registry."""
    return bool(_DATE_LIKE.search(name)) or name.endswith("desc") or name in _FREE_TEXT


def _describe(feature: Feature, present: pd.Series) -> ValueStatistics | None:
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
        # One pass in row order, so that the vocabulary keeps the order of first appearance.
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
    """Means, standard deviations and weights `[3]` of a Gaussian mixture of `numbers` `[values]`; zeros where there are none."""
    if not len(numbers):
        return np.zeros(COMPONENTS), np.zeros(COMPONENTS), np.zeros(COMPONENTS)
    spread = float(np.std(numbers))
    # The fit adds 1e-6 to every variance, which would drown numbers of this size.
    scale = 10.0 ** math.floor(math.log10(spread)) if 0 < spread < SMALL_SPREAD else 1.0
    model = GaussianMixture(COMPONENTS, random_state=MIXTURE_SEED)
    with warnings.catch_warnings():
        # 100 rounds are the original's limit, and the last estimate serves as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(numbers[:, None] / scale)
    return model.means_.ravel() * scale, np.sqrt(model.covariances_.ravel()) * scale, model.weights_


def to_table(statistics: Mapping[str, ValueStatistics]) -> pd.DataFrame:
    """One row for each feature; the inverse of `from_table`."""
    rows = []
    for name, value in statistics.items():
        row = dataclasses.asdict(value)
        rows.append({"feature": name} | {key: list(v) if key != "float_ratio" else v for key, v in row.items()})
    columns = ["feature", *(field.name for field in dataclasses.fields(ValueStatistics))]
    return pd.DataFrame(rows, columns=columns)


def from_table(table: pd.DataFrame, where: str) -> dict[str, ValueStatistics]:
    """Statistics from what `to_table` made. Raises InputError, naming `where`, if a column is missing."""
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
    """The numbers that training patients have for `name`, without missing values: `[values]` float64."""
    return numbers_of(train[name]).dropna().to_numpy()
