"""What a column of a registry is: its name, how it is shown, and what kind of values it holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import pandas as pd

from shared.errors import InputError

Kind = Literal["number", "category", "datetime", "text"]
KINDS = ("number", "category", "datetime", "text")
MAX_DECIMALS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One column. `name` is the key, `display_name` (unit included) and `section` are what a reader sees.

    `section` is a header such as `[Outcome/Hospital outcome]`, or "" in a registry without sections.
    `decimals` is how many decimals numbers are shown with: the fewest that represent the training values, at most 3.
    `categories` are the texts that a category may take, in the order of its coding, then of first appearance; `labels` are
    those that its code table spells. Features of one `leak_group` give each other away. A number column may hold a few texts
    such as `<0.3`; it is then stored as texts (see `numbers_of`). A feature that is not `visible` is never shown nor asked
    for: it is kept for splits, labels and subgroups.
    """

    name: str
    display_name: str
    section: str
    kind: Kind
    unit: str = ""
    decimals: int = 0
    categories: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    leak_group: str | None = None
    visible: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"feature {self.name}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if not 0 <= self.decimals <= MAX_DECIMALS:
            raise InputError(f"feature {self.name}: decimals = {self.decimals}; 0 to {MAX_DECIMALS} are possible")

    def rank(self, text: str) -> tuple[float, str]:
        """What to sort shown values by: numbers by size, categories in the order of their coding."""
        if self.kind == "number":
            return (as_number(text), text)
        return (self.categories.index(text) if text in self.categories else len(self.categories), text)


def to_json(features: Iterable[Feature]) -> list[dict[str, Any]]:
    """Features as JSON values, in order."""
    return [
        dataclasses.asdict(feature) | {"categories": list(feature.categories), "labels": list(feature.labels)}
        for feature in features
    ]


def from_json(values: Any, where: str) -> list[Feature]:
    """Features from what `to_json` made. Raises InputError, naming `where`, if it is anything else."""
    if not isinstance(values, list):
        raise InputError(f"{where}: not a list of features")
    try:
        lists = ("categories", "labels")
        return [Feature(**{**value, **{name: tuple(value.get(name, ())) for name in lists}}) for value in values]
    except (TypeError, KeyError) as error:
        raise InputError(f"{where}: not a list of features ({error})") from None


def value_text(feature: Feature, value: Any) -> str:
    """How a present value is shown: numbers with `feature.decimals`, datetimes as YYYY-MM-DD HH:MM:SS, texts as is."""
    if feature.kind == "number":
        number = as_number(value)
        return str(value) if math.isnan(number) else units_text(to_units(number, feature.decimals), feature.decimals)
    if feature.kind == "datetime":
        return pd.Timestamp(value).strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def as_number(value: Any) -> float:
    """The finite number that a cell holds or spells, else NaN (None, blank and `<0.3` included)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def to_units(number: float, decimals: int) -> int:
    """`number` as a whole count of its last shown decimal: 1.35 is 135 with two decimals."""
    return round(number * 10**decimals)


def units_text(units: int, decimals: int) -> str:
    """The text of a count of last decimals; zero never carries a sign."""
    if decimals == 0:
        return str(units)
    whole, rest = divmod(abs(units), 10**decimals)
    return f"{'-' if units < 0 else ''}{whole}.{rest:0{decimals}d}"


def fewest_decimals(numbers: Iterable[float]) -> int:
    """The fewest decimals, at most 3, that show every one of `numbers` as it is."""
    values = list(numbers)
    for decimals in range(MAX_DECIMALS):
        scale = 10**decimals
        if all(abs(round(v * scale) - v * scale) <= 1e-9 * max(1.0, abs(v * scale)) for v in values):
            return decimals
    return MAX_DECIMALS


def numbers_of(column: pd.Series) -> pd.Series:
    """A number column as float64 `[patients]`: missing values and texts such as `<0.3` are NaN."""
    if column.dtype == "float64":
        return column
    return pd.Series([as_number(value) for value in column], index=column.index, dtype="float64")
