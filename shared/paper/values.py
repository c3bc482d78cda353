"""Draws answer options as the original did (spec: registry, b). There are often fewer options than asked for, rarely more."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.paper.draws import Draws

MIN_STD = 0.1  # if the drawn component has a smaller standard deviation, options are sampled from the values
POSITIVE_SHARE, WHOLE_SHARE = (
    0.95,
    0.9,
)  # above these shares of the numbers, options must be 0 or more, or are whole numbers

_POINT_ZERO = re.compile(r"(\d)\.0+$")
_LAST_ZEROS = re.compile(r"(\.\d*[1-9])0+$")


class CannotDraw(ValueError):
    """The original's program stopped here: there are no options for this value."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """The distribution of one feature as the original stored it. The fields are those of `ValueStatistics`.

    `all_vocab` also has the numbers, as texts.
    """

    vocab: tuple[str, ...]
    weights: tuple[float, ...]
    float_ratio: float
    all_vocab: frozenset[str]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    mixture: tuple[float, ...]

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The numbers among all values: `[values]` float64."""
        return np.array([float(text) for text in self.all_vocab - set(self.vocab)], dtype=np.float64)

    @functools.cached_property
    def never_negative(self) -> bool:
        """Whether negative options are left out."""
        return bool(len(self.numbers)) and float((self.numbers >= 0).mean()) > POSITIVE_SHARE

    @functools.cached_property
    def whole(self) -> bool:
        """Whether options are rounded to whole numbers; otherwise they have one decimal."""
        return bool(len(self.numbers)) and float((self.numbers % 1 == 0).mean()) > WHOLE_SHARE


def from_json(value: Mapping[str, Any]) -> Choices:
    """The distribution from the original's dictionary of one feature (VOCAB, WEIGHTS, FLOAT_RATIO, ALL_VOCAB, GM)."""
    mixture = value["GM"]
    return Choices(
        vocab=tuple(value["VOCAB"]),
        weights=tuple(value["WEIGHTS"]),
        float_ratio=float(value["FLOAT_RATIO"]),
        all_vocab=frozenset(value["ALL_VOCAB"]),
        means=tuple(mixture["means"]),
        stds=tuple(mixture["stds"]),
        mixture=tuple(mixture["weights"]),
    )


def value_choices(
    label: Any, stats: Choices, draws: Draws, *, num_choices: int = 5, difficulty: float = 2.0
) -> tuple[str, list[str]]:
    """The text of the label, and its distractors, sorted as texts. Raises CannotDraw if the original's program stopped."""
    text, number = _label(label)
    if stats.float_ratio == 0 and len(stats.vocab) <= num_choices:
        options = [entry for entry in stats.vocab if entry != text]
    else:
        options = _drawn(text, number, stats, draws, num_choices, difficulty)
    if text == "NA":
        raise CannotDraw("a missing value has no options")
    if "nan" in options:
        options.remove("nan")
    text = plain(text)
    return text, sorted({plain(option) for option in options} - {text})


def plain(text: str) -> str:
    """The text without zeros at the end of decimals: `3.0` becomes `3`, `1.50` becomes `1.5`, also in longer texts."""
    return _LAST_ZEROS.sub(r"\1", _POINT_ZERO.sub(r"\1", text))


def _label(label: Any) -> tuple[str, float | None]:
    try:
        number = float(label)
    except (TypeError, ValueError):
        return str(label), None
    return str(number), number


def _drawn(
    text: str, number: float | None, stats: Choices, draws: Draws, num_choices: int, difficulty: float
) -> list[str]:
    texts = int(draws.np.binomial(num_choices - 1, 1 - stats.float_ratio))
    texts = min(texts, len(stats.vocab) - (number is None))
    options: list[str] = []
    if texts > 0:
        others = [(entry, weight) for entry, weight in zip(stats.vocab, stats.weights) if entry != text]
        chances = np.array([weight for _, weight in others])
        if texts > len(others):
            raise CannotDraw("there are fewer other values than options")
        names = [entry for entry, _ in others]
        options = [str(entry) for entry in draws.np.choice(names, texts, replace=False, p=chances / chances.sum())]
    numbers = num_choices - 1 - texts
    if numbers > 0:
        options += _numbers(text, number, options, numbers, stats, draws, difficulty)
    return options


def _numbers(
    text: str,
    number: float | None,
    chosen: list[str],
    count: int,
    stats: Choices,
    draws: Draws,
    difficulty: float,
) -> list[str]:
    # A label is a Python float, but a drawn mean is a NumPy float; the two round halves differently.
    centre: Any = draws.np.choice(stats.means, p=stats.mixture) if number is None else number
    scores = np.array(
        [weight * _density(centre, mean, std) for mean, std, weight in zip(stats.means, stats.stds, stats.mixture)]
    )
    if (scores == 0).all():
        return _sample(text, chosen, count, stats, draws)
    std = stats.stds[int(draws.np.choice(len(scores), p=scores / scores.sum()))]
    if std < MIN_STD:
        return _sample(text, chosen, count, stats, draws)
    below = int(draws.np.randint(0, count + 1))
    values = [centre + difficulty * (i - below) * std for i in range(count + 1) if i != below]
    if stats.never_negative:
        values = [value for value in values if value >= 0]
    return [str(round(value)) if stats.whole else str(round(value, 1)) for value in values]


def _density(value: float, mean: float, std: float) -> float:
    if std <= 0:
        return math.nan
    return float(np.exp(-(((value - mean) / std) ** 2) / 2.0) / math.sqrt(2 * math.pi) / std)


def _sample(text: str, chosen: list[str], count: int, stats: Choices, draws: Draws) -> list[str]:
    pool = sorted(stats.all_vocab - {text} - set(chosen))
    if count > len(pool):
        raise CannotDraw("there are fewer other values than options")
    return draws.py.sample(pool, count)
