"""SAS formats: which columns hold dates and times, and the labels of values in a catalogue file (.sas7bcat)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyreadstat

from shared.errors import InputError

# The exceptions that pyreadstat raises for a file that is damaged, or of another kind than its name says.
UNREADABLE = (
    pyreadstat.ReadstatError,
    pyreadstat.PyreadstatError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
)

# Names of SAS formats, without widths. DATES: days since 1960; MOMENTS: seconds since 1960; TIMES: seconds since midnight.
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
# Formats that only change how a value is written, and do not give it a label.
PLAIN = {
    "", "$", "$CHAR", "$F", "$VARYING", "$ASCII", "$UPCASE", "$QUOTE", "BEST", "BESTD", "BESTX", "COMMA", "COMMAX", "D", "DOLLAR",
    "DOLLARX", "E", "EURO", "EUROX", "F", "FRACT", "NEGPAREN", "NLNUM", "NUMX", "PERCENT", "PERCENTN", "PVALUE", "SSN", "Z",
}  # fmt: skip


def base_of(form: str) -> str:
    """The name of a format without its width: DATE for DATE9., but E8601DA stays E8601DA."""
    name = form.strip().upper()
    base = name.rstrip("0123456789.")
    return base if base in DATES | MOMENTS | TIMES | PLAIN else name.rstrip(".")


def meanings_of(
    path: Path, formats: Mapping[str, str], catalogue: Path | None, encoding: str
) -> tuple[dict[str, Mapping[Any, str]], list[str]]:
    """The labels of values by column, from the formats in a catalogue, and a note on formats that have no labels there.

    `formats` gives the format of each column of the table in `path`. Raises InputError if the catalogue cannot be read.
    """
    labels_of_format = _labels(catalogue, encoding) if catalogue else {}
    format_of = {name: base_of(form) for name, form in formats.items()}
    format_of = {name: form for name, form in format_of.items() if form not in DATES | MOMENTS | TIMES | PLAIN}
    labels_of_column = {
        name: labels
        for name, form in format_of.items()
        if (labels := labels_of_format.get(form) or labels_of_format.get(_without_width(form)))
    }
    unknown = [f"{name} ({form})" for name, form in format_of.items() if name not in labels_of_column]
    if not unknown:
        return labels_of_column, []
    where = (
        f"{catalogue.name} has not"
        if catalogue
        else "are kept in another file (a catalogue, .sas7bcat: put it into the folder)"
    )
    note = (
        f"{path.name}: codes are shown as they are where the labels of a SAS format {where}: {', '.join(unknown)}; "
        "the codebook may give labels too"
    )
    return labels_of_column, [note]


def _without_width(form: str) -> str:
    """The name of a user-defined format without its width. Such a name cannot end in a digit."""
    return form.rstrip("0123456789.")


def _labels(catalogue: Path, encoding: str) -> dict[str, Mapping[Any, str]]:
    try:
        _, about = pyreadstat.read_sas7bcat(catalogue, encoding=encoding or None)
    except UNREADABLE as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{catalogue}: not a readable sas7bcat file ({reason})") from None
    return {name.upper(): labels for name, labels in about.value_labels.items()}
