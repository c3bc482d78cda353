"""Corrections of errors in the original. All are off by default, so that results can be compared with the paper."""

from __future__ import annotations

from shared.errors import InputError

FIXES = {
    "mean_pressure": "second pass: MeanBP above 200 is removed (the original tests DiaBP twice)",
    "full_oxygen": "a FiO2 noted as exactly 1 is 100 %, not missing",
    "no_device": "no oxygen device on record counts as none, so FiO2 is estimated where neither is known",
    "temperature": "second pass: Fahrenheit is converted where Celsius is missing (the original tests SpO2 by mistake)",
    "potassium_hold": "a potassium value is held for 14 hours, not 144",
    "preadmission_urine": "urine noted before the ICU is counted (the original looks it up under wrong stay ids)",
}


def parse(text: str) -> frozenset[str]:
    """The names in the option `fix`: "" for none, "all", or names separated by commas. Raises InputError for another name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return frozenset(FIXES)
    wrong = [name for name in names if name not in FIXES]
    if wrong:
        raise InputError(f"fix = {text!r}: {wrong[0]!r} is no correction; there are all, {', '.join(FIXES)}")
    return frozenset(names)
