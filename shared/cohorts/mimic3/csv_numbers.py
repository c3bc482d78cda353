"""Numbers as the original's CSV readers gave them, which are off in their last digit here and there (spec: mimic3, 12).

Its cohort script read the extracts with pandas 0.24, its question scripts the final table with pandas 2.2. Neither
default parser gives back the number that was written. Results are equal to the last bit only with the same errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

LATE_DIGITS = 17  # pandas 2.2 takes no further digits, leading zeros included

Reader = Callable[[float], float]


def reread(table: pd.DataFrame, reader: Reader) -> pd.DataFrame:
    """The table with every float column as `reader` gives its numbers back; integers and missing values stay."""
    result = table.copy()
    for name in table.columns[table.dtypes == np.float64]:
        codes, distinct = pd.factorize(table[name])
        result[name] = np.append([reader(float(value)) for value in distinct], np.nan)[codes]
    return result


def early(value: float) -> float:
    """As pandas 0.24 read it: all digits as one number, then divided by 10, 100, 10,000 and so on in turn."""
    if not np.isfinite(value):
        return value
    digits, power = _written(value)
    number = _number(digits)
    factor, left = 10.0, abs(power)
    while left:
        if left % 2:
            number = number * factor if power > 0 else number / factor
        factor, left = factor * factor, left // 2
    return float(np.copysign(number, value))


def late(value: float) -> float:
    """As pandas 2.2 read it: 17 digits at most, divided once by their power of ten."""
    if not np.isfinite(value):
        return value
    digits, power = _written(value)
    power += max(0, len(digits) - LATE_DIGITS)
    number = _number(digits[:LATE_DIGITS])
    number = number * float(f"1e{power}") if power > 0 else number / float(f"1e{-power}")
    return float(np.copysign(number, value))


def _written(value: float) -> tuple[str, int]:
    """The digits of the shortest text of a number, and the power of ten of the last of them."""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, decimals = mantissa.partition(".")
    return whole + decimals, int(exponent or 0) - len(decimals)


def _number(digits: str) -> float:
    number = 0.0
    for digit in digits:
        number = number * 10.0 + int(digit)
    return number
