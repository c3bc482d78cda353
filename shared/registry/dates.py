"""Recognises dates in texts, in any common form: 2024-01-31, 31.01.2024 08:30, Jan 31, 2024, 20240131, 2024년 1월 31일."""

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
READ_SHARE = 0.9  # this share of a column's distinct texts must be dates; the others may mean that a date is unknown
GUESSED_TEXTS, TRIED_FORMATS = 40, 8  # at most: texts whose format is guessed, and formats that are tried on all texts
MICROSECONDS_A_DAY = 86_400e6

_KOREAN = re.compile(r"(\d{4})년\s*(\d{1,2})월\s*(\d{1,2})일")
_CANDIDATE = re.compile(r"(?=.*\d{4}).{8,40}")  # a date has a year of four digits, and 8 to 40 characters


def days(texts: Sequence[str]) -> np.ndarray:
    """The dates of one column of texts: `[texts]` float64, in days since 1970-01-01; NaN for a text that is no date.

    If fewer than `READ_SHARE` of the distinct texts are dates, all are NaN. Whether the day or the month comes first is
    decided for the whole column. Time zones are ignored, because hospitals write their local time.
    """
    distinct = list(dict.fromkeys(texts))
    plain = [_KOREAN.sub(r"\1-\2-\3", text.strip()) for text in distinct]
    likely = [text if _CANDIDATE.fullmatch(text) else None for text in plain]
    days_of_texts = np.full(len(distinct), np.nan)
    if sum(text is not None for text in likely) >= max(1.0, READ_SHARE * len(distinct)):
        readings = [_read(likely, form) for form in _formats([text for text in likely if text is not None])]
        for reading in sorted(readings, key=lambda reading: -np.count_nonzero(~np.isnan(reading))):
            days_of_texts = np.where(np.isnan(days_of_texts), reading, days_of_texts)
    if np.count_nonzero(~np.isnan(days_of_texts)) < READ_SHARE * len(distinct):
        return np.full(len(texts), np.nan)
    day_of_text = dict(zip(distinct, days_of_texts.tolist(), strict=True))
    return np.array([day_of_text[text] for text in texts], dtype=np.float64)


def _formats(texts: Sequence[str]) -> list[str]:
    """The date formats, guessed from a sample of the texts, that have a day, a month and a year of four digits."""
    sample = [texts[place] for place in np.linspace(0, len(texts) - 1, min(GUESSED_TEXTS, len(texts))).astype(int)]
    with warnings.catch_warnings():
        # pandas warns where the order of day and month is not the one that was asked for.
        warnings.simplefilter("ignore", UserWarning)
        guessed = [guess_datetime_format(text, dayfirst=first) for first in (False, True) for text in sample]
    complete = [form for form in guessed if form and "%d" in form and "%Y" in form and not re.search("%Y.?%d", form)]
    return list(dict.fromkeys(complete))[:TRIED_FORMATS]


def _read(texts: Any, form: str) -> np.ndarray:
    """Days since 1970 `[texts]` of a list of texts and None; NaN for None and for a text that is not in the format `form`."""
    # If the texts have different time zones, pandas finds no common type for them, unless all become UTC.
    zoned = "%z" in form
    values = pd.to_datetime(pd.Series(list(texts), dtype=object), format=form, errors="coerce", utc=zoned)
    if zoned:
        without_zone = [re.sub(r"(Z|[+-]\d{2}:?\d{2})$", "", text).rstrip() if text else None for text in texts]
        local = pd.to_datetime(
            pd.Series(without_zone, dtype=object), format=form.replace("%z", "").rstrip(), errors="coerce"
        )
        values = local.where(values.notna())
    return values.astype("datetime64[us]").astype("int64").where(values.notna()).to_numpy() / MICROSECONDS_A_DAY
