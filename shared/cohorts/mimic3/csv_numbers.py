"""Reproduces the rounding errors of the CSV readers that the original used (spec: mimic3, 12).

Its cohort script read the extracts with pandas 0.24, and its question scripts read the final table with pandas 2.2. The default
parser of both sometimes returns a number that differs in the last digit from the number in the file. Results are equal to the
original's in every bit only with the same errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

LATE_DIGITS = 17  # pandas 2.2 reads at most so many digits, leading zeros included

Reader = Callable[[float], float]


def reread(table: pd.DataFrame, reader: Reader) -> pd.DataFrame:
    """The table with every number of its float columns replaced by what `reader` returns for it.

    Integers and missing values are not changed.
    """
    result = table.copy()
    for name in table.columns[table.dtypes == np.float64]:
        codes, distinct = pd.factorize(table[name])
        result[name] = np.append([reader(float(value)) for value in distinct], np.nan)[codes]
    return result


def early(value: float) -> float:
    """The number that pandas 0.24 reads: all digits as one number, then multiplied or divided by powers of ten in turn."""
    if not np.isfinite(value):
        return value
    digits, power = _written(value)
    number = _number(digits)
    factor, remaining = 10.0, abs(power)
    while remaining:
        if remaining % 2:
            number = number * factor if power > 0 else number / factor
        factor, remaining = factor * factor, remaining // 2
    return float(np.copysign(number, value))


def late(value: float) -> float:
    """The number that pandas 2.2 reads: at most 17 digits as one number, then multiplied or divided by one power of ten."""
    if not np.isfinite(value):
        return value
    digits, power = _written(value)
    power += max(0, len(digits) - LATE_DIGITS)
    number = _number(digits[:LATE_DIGITS])
    number = number * float(f"1e{power}") if power > 0 else number / float(f"1e{-power}")
    return float(np.copysign(number, value))


def _written(value: float) -> tuple[str, int]:
    """The digits of the shortest text of a number, and the power of ten of the last digit."""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, decimals = mantissa.partition(".")
    return whole + decimals, int(exponent or 0) - len(decimals)


def _number(digits: str) -> float:
    number = 0.0
    for digit in digits:
        number = number * 10.0 + int(digit)
    return number
