"""The meaning of the codes of the stroke registry (spec: registry, a.5). The tables are in `registry.json` beside this file.

With `paper=True`, values are those of the original: a missing tick box is Yes, a code 0 that the table of a yes/no column lacks
is `no`, and "not available" stays a text. Corrected here: a missing tick box is No, such a 0 is No as elsewhere, "not
available" is missing, and an unknown code is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.cohorts.tables import shown_code
from shared.errors import InputError

Code = int | str
Coding = Mapping[Code, str]

TABLES = json.loads((Path(__file__).parent / "registry.json").read_text(encoding="utf-8"))
CODINGS: dict[str, dict[Code, str]] = {text: dict(pairs) for text, pairs in TABLES["codings"].items()}
LABELS: dict[str, str] = TABLES["labels"]
TICKS = frozenset(TABLES["ticks"])  # tick boxes, which are asked only if they may apply, so a blank means no

NOT_AVAILABLE = "NA"
NOT_AVAILABLE_CODES = (999, 9999, "999", "9999")
YES = ("Yes", "yes", 1, True)
TICKED, NOT_TICKED = (*YES, "1"), ("", "No", "no", "0")
EDUCATION = {1: "0-3 years", 2: "4-6 years", 3: "7-9 years", 4: "10-12 years", 5: "13 years or more", 9: "No response"}


class UnknownCode(ValueError):
    """A code is not in its code table."""


def parse_coding(text: Any) -> Coding | None:
    """The code table in the text of a metadata cell, or None if the column has no codes."""
    if not isinstance(text, str):
        return None
    if text in CODINGS:
        return CODINGS[text]
    parts = text.split(",")
    if len(parts) < 2:
        return None
    for mark in "=.-":
        pairs = [part.split(mark) for part in parts]
        if all(len(pair) == 2 for pair in pairs):
            return {_code(code.strip()): LABELS.get(label.strip(), label.strip()) for code, label in pairs}
    return None


def _code(text: str) -> Code:
    return int(text) if text.isascii() and text.isdigit() else text


def decode(name: str, value: Any, coding: Coding | None, *, paper: bool = False) -> Any:
    """The value of a cell: the label of a code, or the cell itself if the column has no codes; None if it is missing.

    Raises UnknownCode for a code that the table does not have.
    """
    missing = value is None or value != value
    if name in TICKS:
        if paper:
            return "Yes" if missing or value in YES else "No"
        if isinstance(value, str) and value not in (*TICKED, *NOT_TICKED):
            raise UnknownCode(value)
        return "Yes" if value in TICKED else "No"
    if missing or value == "":
        return None
    if value in NOT_AVAILABLE_CODES:
        return NOT_AVAILABLE
    if coding is None:
        return value
    if value in coding:
        return coding[value]
    if isinstance(value, str) and value.isascii() and value.isdigit() and int(value) in coding:
        return coding[int(value)]
    return _not_in_table(name, value, coding, paper)


def _not_in_table(name: str, value: Any, coding: Coding, paper: bool) -> Any:
    """The value of a code that is not in its table, for the exceptions of this registry. Raises UnknownCode for others."""
    if coding.get(1) == "Yes":
        if value == 0:
            return "no" if paper else "No"
        if value == 9:
            return NOT_AVAILABLE
        if name == "ce_medium" and value == 2:
            return None
        raise UnknownCode(str(value))
    if set(coding.values()) == {NOT_AVAILABLE}:
        return value
    if (name, value) in (("ivtpa_n", 11), ("ivtpa60_n", 5)):
        stands_for = 10 if value == 11 else 4
        if stands_for not in coding:
            raise UnknownCode(str(value))
        return coding[stands_for]
    if name == "post_evt_state" and value == "미확인":
        return "Unconfirmed"
    if value == 9:
        return NOT_AVAILABLE
    if paper or value == 0:  # a vessel without a lesion has side 0
        return None
    raise UnknownCode(str(value))


def education(level: Any, years: Any) -> str | None:
    """The education of a patient from its two columns. Raises UnknownCode if they have an unknown code."""
    if level is None or level == "":
        return None
    if 999 in (level, years):
        return NOT_AVAILABLE
    if level in (0, 1):
        return "illiterate/uneducated"
    if level == 2:
        return "uneducated"
    if level == 3:
        if years is None or years == "":
            return NOT_AVAILABLE
        if years in EDUCATION:
            return EDUCATION[years]
    raise UnknownCode(f"{level}, {years}")


def decode_column(
    name: str, values: Sequence[Any], coding: Coding | None, dictionary: Mapping[str, str], *, paper: bool
) -> list[Any]:
    """`decode` for a whole column; then `dictionary` translates texts. Raises InputError that names the unknown codes."""
    decoded: dict[Any, Any] = {}
    unknown = []
    for value in dict.fromkeys((type(value), value) for value in values):
        try:
            label = decode(name, value[1], coding, paper=paper)
        except UnknownCode as error:
            unknown.append(shown_code(error))
            continue
        decoded[value] = dictionary.get(label, label) if isinstance(label, str) else label
    if unknown:
        known_codes = ", ".join(str(code) for code in coding or ())
        raise InputError(f"data column {name}: code {', '.join(unknown[:5])} is not in its coding ({known_codes})")
    return [decoded[type(value), value] for value in values]
