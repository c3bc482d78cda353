"""What a column of a registry is: its name, how it is shown, and what kind of values it holds."""

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
FEW_TEXTS = 20  # up to so many different values must stay different
MIN_DECIMALS, MAX_DECIMALS = -16, 24
DIGITS = 15  # that a float64 holds whatever its size
BEYOND = 1e30  # a number as large as this is refused

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One column. `name` is the key, `display_name` (unit included) and `section` are what a reader sees.

    `section` is a header such as `[Outcome/Hospital outcome]`, or "" in a registry without sections.
    `decimals` is how many decimals numbers are shown with (see `fewest_decimals`). `categories` are the texts that a
    category may take, in the order of its coding, then of first appearance; `labels` are those that its code table spells.
    Features of one `leak_group` give each other away. A number column may hold a few texts such as `<0.3`; it is then stored
    as texts (see `numbers_of`). `days` are datetimes that are all at midnight, shown without a time. A feature that is not
    `visible` is never shown nor asked for: it is kept for splits, labels and subgroups.
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


def display_names(folder: Path) -> dict[str, str]:
    """What a reader sees for each feature of the registry prepared in `folder`; none where there is no registry."""
    path = folder / "features.json"
    return (
        {item.name: item.display_name for item in from_json(files.read_json(path), str(path))} if path.is_file() else {}
    )


def value_text(feature: Feature, value: Any) -> str:
    """How a present value is shown: numbers with `feature.decimals`, datetimes as YYYY-MM-DD HH:MM:SS, texts as is.

    A day is YYYY-MM-DD, where all values that the feature was made from are at midnight, and so is this.
    """
    if feature.kind == "number":
        number = as_number(value)
        return str(value) if math.isnan(number) else units_text(to_units(number, feature.decimals), feature.decimals)
    if feature.kind == "datetime":
        moment = pd.Timestamp(value)
        return moment.strftime("%Y-%m-%d" if feature.days and moment == moment.normalize() else "%Y-%m-%d %H:%M:%S")
    return str(value)


def is_days(column: pd.Series) -> bool:
    """Whether a column of moments has some, all at midnight."""
    present = column.dropna()
    return bool(len(present)) and bool((present == present.dt.normalize()).all())


def as_number(value: Any) -> float:
    """The finite number that a cell holds or spells, else NaN (None, blank and `<0.3` included).

    A text must be written as in `-1.5` or `2e-3`: `12_3`, `1,000` and digits of other scripts are no numbers.
    """
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def is_misspelt_number(value: Any) -> bool:
    """Whether a text is a number to Python only: `12_3`, `nan`, `inf`, digits of another script."""
    if not isinstance(value, str) or not math.isnan(as_number(value)):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def to_units(number: float, decimals: int) -> int:
    """`number` as a whole count of its last shown place: 1.35 is 135 with two decimals, 1200 is 12 with minus two."""
    return round(number * 10**decimals) if decimals >= 0 else round(number / 10**-decimals)


def units_text(units: int, decimals: int) -> str:
    """The text of a count of last places; zero never carries a sign."""
    if decimals <= 0:
        return str(units * 10**-decimals)
    whole, rest = divmod(abs(units), 10**decimals)
    return f"{'-' if units < 0 else ''}{whole}.{rest:0{decimals}d}"


def fewest_decimals(numbers: Iterable[float]) -> int:
    """The fewest decimals that show every one of `numbers` as it is, and 3 where more would be needed.

    More than 3 only where with 3 more than one in twenty would be shown as 0, or fewer than 20 different texts would
    remain: then as many as keep different numbers different, with three to six significant digits. Below 0 where the
    numbers have more than 15 digits: -6 shows multiples of a million.
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
        short = _close(sizes, decimals, error=0.005) and _texts(values, decimals) == len(values)
        long = _close(sizes, decimals, error=5e-6) and high - low >= 1e5 * 10.0**-decimals
        if short or long or _exact(values, sizes, decimals):
            return decimals
    return most


def too_wide(numbers: Iterable[float]) -> bool:
    """Whether the largest of `numbers` leaves no digits for most of the others: 1e20 among values near 1."""
    values = np.array(sorted(set(numbers)), dtype=np.float64)
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return False
    most = _most_decimals(sizes)
    return most < PLAIN_DECIMALS and not (_exact(values, sizes, most) or _close(sizes, most, error=0.02))


def _most_decimals(sizes: np.ndarray) -> int:
    return min(MAX_DECIMALS, max(MIN_DECIMALS, DIGITS - 1 - math.floor(math.log10(sizes.max()))))


def _exact(values: np.ndarray, sizes: np.ndarray, decimals: int) -> bool:
    """Whether every value is shown as it is; `sizes` are those of the values that are not 0."""
    scaled = values * 10.0**decimals
    noise = min(1.0, float(np.median(sizes)) * 10.0**decimals)  # what is this much smaller than the others is no value
    rounding = np.maximum(1e-3, 4 * np.finfo(np.float64).eps * np.abs(scaled))
    allowed = np.minimum(1e-9 * np.maximum(noise, np.abs(scaled)), rounding)
    return bool((np.abs(np.round(scaled) - scaled) <= allowed).all())


def _close(sizes: np.ndarray, decimals: int, *, error: float) -> bool:
    """Whether 19 of 20 values are shown within `error` of their size; within 1: not as 0."""
    return bool((0.5 * 10.0**-decimals <= error * sizes).mean() >= 0.95)


def _texts(values: np.ndarray, decimals: int) -> int:
    """How many different texts the values are shown as."""
    return len(np.unique(np.round(values * 10.0**decimals)))


def numbers_of(column: pd.Series) -> pd.Series:
    """A number column as float64 `[patients]`: missing values and texts such as `<0.3` are NaN."""
    if column.dtype == "float64":
        return column
    return pd.Series([as_number(value) for value in column], index=column.index, dtype="float64")
