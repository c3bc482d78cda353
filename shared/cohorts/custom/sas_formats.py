"""SAS formats: what they make of a column's numbers, and the labels that a catalogue (.sas7bcat) gives to values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyreadstat

from shared.errors import InputError

# What pyreadstat raises for files that are damaged, or not what their name says.
UNREADABLE = (
    pyreadstat.ReadstatError,
    pyreadstat.PyreadstatError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
)

# SAS formats by what their column holds: days or seconds since 1960, seconds since midnight. Widths are not part of a name.
DATES = {
    "DATE", "DAY", "DDMMYY", "DOWNAME", "E8601DA", "B8601DA", "IS8601DA", "JULDAY", "JULIAN", "MMDDYY", "MMYY", "MONNAME",
    "MONTH", "MONYY", "NENGO", "MINGUO", "NLDATE", "QTR", "QTRR", "WEEKDATE", "WEEKDATX", "WEEKDAY", "WEEKU", "WEEKV", "WEEKW",
    "WORDDATE", "WORDDATX", "YEAR", "YYMM", "YYMMDD", "YYMON", "YYQ", "YYQR",
} | {f"{base}{mark}" for base in ("DDMMYY", "MMDDYY", "YYMMDD", "MMYY", "YYMM", "YYQ", "YYQR") for mark in "BCDNPS"}  # fmt: skip
MOMENTS = {
    "DATETIME", "DATEAMPM", "DTDATE", "DTMONYY", "DTWKDATX", "DTYEAR", "DTYYQC", "E8601DT", "E8601DN", "E8601DX", "E8601DZ",
    "E8601LX", "B8601DT", "B8601DN", "B8601DX", "B8601DZ", "B8601LX", "IS8601DT", "MDYAMPM", "NLDATM",
}  # fmt: skip
TIMES = {"TIME", "TIMEAMPM", "HHMM", "HOUR", "MMSS", "E8601TM", "B8601TM", "IS8601TM", "NLTIME", "TOD"}
# Formats that show a value as it is, or write the same number in another way.
PLAIN = {
    "", "$", "$CHAR", "$F", "$VARYING", "$ASCII", "$UPCASE", "$QUOTE", "BEST", "BESTD", "BESTX", "COMMA", "COMMAX", "D", "DOLLAR",
    "DOLLARX", "E", "EURO", "EUROX", "F", "FRACT", "NEGPAREN", "NLNUM", "NUMX", "PERCENT", "PERCENTN", "PVALUE", "SSN", "Z",
}  # fmt: skip


def base_of(form: str) -> str:
    """A format without its width: DATE for DATE9., but E8601DA as it is."""
    name = form.strip().upper()
    base = name.rstrip("0123456789.")
    return base if base in DATES | MOMENTS | TIMES | PLAIN else name.rstrip(".")


def meanings_of(
    path: Path, formats: Mapping[str, str], catalogue: Path | None, encoding: str
) -> tuple[dict[str, Mapping[Any, str]], list[str]]:
    """The labels of the values of each column that a catalogue's format describes, and a note on formats that none does.

    `formats` are those of the columns of the table in `path`. Raises InputError where the catalogue cannot be read.
    """
    known = _labels(catalogue, encoding) if catalogue else {}
    own = {name: base_of(form) for name, form in formats.items()}
    own = {name: form for name, form in own.items() if form not in DATES | MOMENTS | TIMES | PLAIN}
    found = {name: label for name, form in own.items() if (label := known.get(form) or known.get(_narrow(form)))}
    unknown = [f"{name} ({form})" for name, form in own.items() if name not in found]
    if not unknown:
        return found, []
    where = (
        f"{catalogue.name} has not"
        if catalogue
        else "are kept in another file (a catalogue, .sas7bcat: put it into the folder)"
    )
    return found, [f"{path.name}: codes are shown as they are where the labels of a SAS format {where}: {', '.join(unknown)}; "
                   f"the codebook may give labels too"]  # fmt: skip


def _narrow(form: str) -> str:
    """A format of one's own without its width; its name cannot end in a digit."""
    return form.rstrip("0123456789.")


def _labels(catalogue: Path, encoding: str) -> dict[str, Mapping[Any, str]]:
    try:
        _, about = pyreadstat.read_sas7bcat(catalogue, encoding=encoding or None)
    except UNREADABLE as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{catalogue}: not a readable sas7bcat file ({reason})") from None
    return {name.upper(): labels for name, labels in about.value_labels.items()}
