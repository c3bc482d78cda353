"""Texts that are dates, whatever way they are written: 2024-01-31, 31.01.2024 08:30, Jan 31, 2024, 20240131, 2024년 1월 31일."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format

HOUR, DAY = 3_600, 86_400  # seconds
YEAR = 365.25  # days
READ_SHARE = 0.9  # of a column's different texts: the others may say that a date is unknown
GUESSED_TEXTS, TRIED_FORMATS = 40, 8
MICROSECONDS_A_DAY = 86_400e6

_KOREAN = re.compile(r"(\d{4})년\s*(\d{1,2})월\s*(\d{1,2})일")
_CANDIDATE = re.compile(r"(?=.*\d{4}).{8,40}")  # no date is shorter or longer


def days(texts: Sequence[str]) -> np.ndarray:
    """`[texts]` days since 1970 of the texts of one column, NaN for one that is no date; all NaN where most are none.

    Whether the day or the month comes first is decided for all of them together. A time zone is left out: hospitals write
    their own time.
    """
    distinct = list(dict.fromkeys(texts))
    plain = [_KOREAN.sub(r"\1-\2-\3", text.strip()) for text in distinct]
    likely = [text if _CANDIDATE.fullmatch(text) else None for text in plain]
    found = np.full(len(distinct), np.nan)
    if sum(text is not None for text in likely) >= max(1.0, READ_SHARE * len(distinct)):
        readings = [_read(likely, form) for form in _formats([text for text in likely if text is not None])]
        for reading in sorted(readings, key=lambda values: -np.count_nonzero(~np.isnan(values))):
            found = np.where(np.isnan(found), reading, found)
    if np.count_nonzero(~np.isnan(found)) < READ_SHARE * len(distinct):
        return np.full(len(texts), np.nan)
    values = dict(zip(distinct, found.tolist(), strict=True))
    return np.array([values[text] for text in texts], dtype=np.float64)


def _formats(texts: Sequence[str]) -> list[str]:
    """The formats in which some of the texts may be written, with a day, a month and a year."""
    chosen = [texts[place] for place in np.linspace(0, len(texts) - 1, min(GUESSED_TEXTS, len(texts))).astype(int)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a text can be read in one order only
        guessed = [guess_datetime_format(text, dayfirst=first) for first in (False, True) for text in chosen]
    whole = [form for form in guessed if form and "%d" in form and "%Y" in form and not re.search("%Y.?%d", form)]
    return list(dict.fromkeys(whole))[:TRIED_FORMATS]


def _read(texts: Any, form: str) -> np.ndarray:
    """`[texts]` (a list of texts and of None) days, NaN for what is not written in this format."""
    # With each its own zone pandas has no common type for them.
    zoned = "%z" in form
    values = pd.to_datetime(pd.Series(list(texts), dtype=object), format=form, errors="coerce", utc=zoned)
    if zoned:
        ends = [re.sub(r"(Z|[+-]\d{2}:?\d{2})$", "", text).rstrip() if text else None for text in texts]
        local = pd.to_datetime(pd.Series(ends, dtype=object), format=form.replace("%z", "").rstrip(), errors="coerce")
        values = local.where(values.notna())
    return values.astype("datetime64[us]").astype("int64").where(values.notna()).to_numpy() / MICROSECONDS_A_DAY
