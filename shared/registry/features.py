"""The class for a column of a registry (a feature), and functions that turn its values into texts and numbers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.storage import files

Kind = Literal["number", "category", "datetime", "text"]
KINDS = ("number", "category", "datetime", "text")
PLAIN_DECIMALS = 3  # enough for all but very small numbers
FEW_TEXTS = 20  # rounding must leave at least so many distinct values distinct
MIN_DECIMALS, MAX_DECIMALS = -16, 24
DIGITS = 15  # a float64 of any size holds this many decimal digits
BEYOND = 1e30  # a number of this size or more is refused

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of a registry.

    `name` is its key. Records show `display_name` (with the unit) and `section`, a header such as
    `[Outcome/Hospital outcome]`, or "" in a registry without sections. `decimals` is the number of decimals that are shown (see
    `fewest_decimals`). `categories` are all values of a category: those of its coding in their order, then others in order of
    first appearance; `labels` are those of the coding alone. Features of the same `leak_group` reveal each other, so none is
    shown when another is asked for. A number column may hold a few texts such as `<0.3`; it is then stored as texts (see
    `numbers_of`). `days`: all datetimes of the column are at midnight, and are shown without a time. A feature that is not
    `visible` is never shown nor asked for; it is kept for splits, labels and subgroups.
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
    days: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"feature {self.name}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if not MIN_DECIMALS <= self.decimals <= MAX_DECIMALS:
            raise InputError(
                f"feature {self.name}: decimals = {self.decimals}; {MIN_DECIMALS} to {MAX_DECIMALS} are possible"
            )

    def rank(self, text: str) -> tuple[float, str]:
        """The sort key of a shown value: numbers are sorted by size, categories in the order of `categories`."""
        if self.kind == "number":
            return (as_number(text), text)
        return (self.categories.index(text) if text in self.categories else len(self.categories), text)


def to_json(features: Iterable[Feature]) -> list[dict[str, Any]]:
    """Features as JSON values, in the same order."""
    return [
        dataclasses.asdict(feature) | {"categories": list(feature.categories), "labels": list(feature.labels)}
        for feature in features
    ]


def from_json(values: Any, where: str) -> list[Feature]:
    """Features from the output of `to_json`. Raises InputError, with `where` in the message, for anything else."""
    if not isinstance(values, list):
        raise InputError(f"{where}: not a list of features")
    try:
        lists = ("categories", "labels")
        return [Feature(**{**value, **{name: tuple(value.get(name, ())) for name in lists}}) for value in values]
    except (TypeError, KeyError) as error:
        raise InputError(f"{where}: not a list of features ({error})") from None


def display_names(folder: Path) -> dict[str, str]:
    """The display name of each feature of the registry in `folder`, by name; empty if `folder` holds no registry."""
    path = folder / "features.json"
    if not path.is_file():
        return {}
    return {feature.name: feature.display_name for feature in from_json(files.read_json(path), str(path))}


def value_text(feature: Feature, value: Any) -> str:
    """The text that shows a value that is not missing.

    Numbers have `feature.decimals` decimals, datetimes are YYYY-MM-DD HH:MM:SS, texts stay as they are. A datetime is shown as
    YYYY-MM-DD if it is at midnight and `feature.days` says the same of the whole column.
    """
    if feature.kind == "number":
        number = as_number(value)
        return str(value) if math.isnan(number) else units_text(to_units(number, feature.decimals), feature.decimals)
    if feature.kind == "datetime":
        moment = pd.Timestamp(value)
        return moment.strftime("%Y-%m-%d" if feature.days and moment == moment.normalize() else "%Y-%m-%d %H:%M:%S")
    return str(value)


def is_days(column: pd.Series) -> bool:
    """Whether a datetime column has values, and all of them are at midnight."""
    present = column.dropna()
    return bool(len(present)) and bool((present == present.dt.normalize()).all())


def as_number(value: Any) -> float:
    """The finite number that a cell holds, as a number or as a text; NaN for any other cell, such as None, "" or `<0.3`.

    A text must look like `-1.5` or `2e-3`. `12_3`, `1,000` and digits of other scripts are not numbers.
    """
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def is_misspelt_number(value: Any) -> bool:
    """Whether Python's `float` accepts a text that `as_number` does not: `12_3`, `nan`, `inf`, digits of another script."""
    if not isinstance(value, str) or not math.isnan(as_number(value)):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def to_units(number: float, decimals: int) -> int:
    """`number` counted in units of its last shown digit: 1.35 is 135 with 2 decimals, 1200 is 12 with -2 decimals."""
    return round(number * 10**decimals) if decimals >= 0 else round(number / 10**-decimals)


def units_text(units: int, decimals: int) -> str:
    """The text of the number that `to_units` gave as `units`. Zero never has a sign."""
    if decimals <= 0:
        return str(units * 10**-decimals)
    whole, fraction = divmod(abs(units), 10**decimals)
    return f"{'-' if units < 0 else ''}{whole}.{fraction:0{decimals}d}"


def fewest_decimals(numbers: Iterable[float]) -> int:
    """The fewest decimals that show all `numbers` exactly, but usually at most 3.

    More than 3 are used only if 3 would show over 5 % of the numbers as 0, or would leave fewer than 20 distinct texts. Then
    there are as many decimals as keep distinct numbers distinct, with three to six significant digits. The result is below 0
    if the numbers have more than 15 digits: with -6, multiples of a million are shown.
    """
    values = np.array(sorted(set(numbers)), dtype=np.float64)
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return 0
    most = _most_decimals(sizes)
    for decimals in range(min(PLAIN_DECIMALS, most)):
        if _exact(values, sizes, decimals):
            return decimals
    if most <= PLAIN_DECIMALS:
        return most
    if _close(sizes, PLAIN_DECIMALS, error=1.0) and _texts(values, PLAIN_DECIMALS) >= min(len(values), FEW_TEXTS):
        return PLAIN_DECIMALS
    low, high = np.quantile(values, (0.05, 0.95))
    for decimals in range(PLAIN_DECIMALS, most):
        three_digits = _close(sizes, decimals, error=0.005) and _texts(values, decimals) == len(values)
        six_digits = _close(sizes, decimals, error=5e-6) and high - low >= 1e5 * 10.0**-decimals
        if three_digits or six_digits or _exact(values, sizes, decimals):
            return decimals
    return most


def too_wide(numbers: Iterable[float]) -> bool:
    """Whether the largest of `numbers` is so large that most others could not be shown with it, such as 1e20 beside 1.5."""
    values = np.array(sorted(set(numbers)), dtype=np.float64)
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return False
    most = _most_decimals(sizes)
    return most < PLAIN_DECIMALS and not (_exact(values, sizes, most) or _close(sizes, most, error=0.02))


def _most_decimals(sizes: np.ndarray) -> int:
    return min(MAX_DECIMALS, max(MIN_DECIMALS, DIGITS - 1 - math.floor(math.log10(sizes.max()))))


def _exact(values: np.ndarray, sizes: np.ndarray, decimals: int) -> bool:
    """Whether `decimals` show every value exactly. `sizes` are the absolute values of those that are not 0."""
    scaled = values * 10.0**decimals
    noise = min(1.0, float(np.median(sizes)) * 10.0**decimals)  # the scale for judging what is only a rounding error
    rounding = np.maximum(1e-3, 4 * np.finfo(np.float64).eps * np.abs(scaled))
    allowed = np.minimum(1e-9 * np.maximum(noise, np.abs(scaled)), rounding)
    return bool((np.abs(np.round(scaled) - scaled) <= allowed).all())


def _close(sizes: np.ndarray, decimals: int, *, error: float) -> bool:
    """Whether at least 95 % of values are shown with a relative error of at most `error`; 1 means that they are not 0."""
    return bool((0.5 * 10.0**-decimals <= error * sizes).mean() >= 0.95)


def _texts(values: np.ndarray, decimals: int) -> int:
    """How many distinct texts the values are shown as."""
    return len(np.unique(np.round(values * 10.0**decimals)))


def numbers_of(column: pd.Series) -> pd.Series:
    """A number column as float64 `[patients]`; missing values and texts such as `<0.3` become NaN."""
    if column.dtype == "float64":
        return column
    return pd.Series([as_number(value) for value in column], index=column.index, dtype="float64")
