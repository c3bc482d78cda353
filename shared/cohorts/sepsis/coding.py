"""The codebook of the sepsis registry: section headers, display names, and the meaning of codes.

Spec: registry, a.1, steps 1 to 4, 6 and 11. The tables below hold what is special in the export of this registry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.cohorts.tables import shown_code
from shared.errors import InputError

Code = int | str
Coding = dict[Code, str]

DECISION_FROM_ROW = 688  # from this row of the metadata on (counted from 0), codes are in `Decision` and not in `Range`
NOT_AVAILABLE = "NA"

SECTION_NAMES = {
    "환자 및 기관 정보": "Patient and Institution Information",
    "선정기준 및 기초자료": "Selection Criteria and Basic Data",
    "스크리닝기준": "Screening Criteria",
    "연구대상자    선정기준": "Selection Criteria for Study Participants",
    "연구대상자의 기초자료": "Basic Data of Study Participants",
    "bundles 시간 관련 변수": "Bundles Time-related Variables",
    "패혈증 묶음 치료 관련 변수": "Variables Related to Sepsis Bundle Treatment",
    "중환자실 관련 시간 변수": "ICU-related Time Variables",
    "자료 차수 구분자": "Data Batch Identifier",
}

UNITS = {
    unit: unit
    for unit in (
        "cm", "kg", "mmHg", "/min", "℃", "mmol/L", "%", "/uL", "g/dL", "mg/dL", "U/L", "INR", "mg/L", "ng/mL", "mcg/mL",
        "pg/mL", "mL", "Days", "Minutes",
    )
} | {"kg/m2": "kg/m^2", "∙103/uL": "10^3/uL", "103/uL": "10^3/uL"}  # fmt: skip

_TICK_BOX = re.compile(r"\[(\d)\] .+")
_BRACKETED = re.compile(r"\[([A-Z0-9]+)\](.*)")
_EQUATED = re.compile(r"(\d+)\s*=(.*)")


def headers(domains: Sequence[str], sections: Sequence[str]) -> list[str]:
    """A header such as `[Domain/Section]` for each row of the metadata.

    A blank domain or section is that of the row above, or `None` in the first rows.
    """
    result = []
    domain, section = "None", "None"
    for new_domain, new_section in zip(domains, sections, strict=True):
        domain = _section_name(new_domain) or domain
        section = _section_name(new_section) or section
        result.append(f"[{domain}/{section}]")
    return result


def _section_name(cell: Any) -> str:
    text = str(cell or "")
    return SECTION_NAMES.get(text, text).strip().replace("\n", " ")


def display_name(row_name: str, unit: Any) -> str:
    """The row name, followed by its unit in parentheses if `UNITS` has the unit."""
    shown = UNITS.get(str(unit or ""))
    return row_name.strip() + (f" ({shown})" if shown else "")


def parse_coding(text: Any, dictionary: Mapping[str, str]) -> Coding | None:
    """The code table in the text of a `Range` cell, or None if it has none. Codes are int (also as str) or capital letters.

    Lines that begin with neither `[` nor a digit are notes and are skipped. (The original used the line before a note twice,
    and stopped at a note in the first line.)
    """
    if not isinstance(text, str):
        return None
    if "\n" not in text:
        tick = _TICK_BOX.search(text)
        return _with_texts({int(tick[1]): "Yes", 0: "No"}) if tick else None
    coding: Coding = {}
    for position, line in enumerate(text.split("\n")):
        if line.startswith("["):
            match = _BRACKETED.match(line)
        elif line[:1].isdigit():
            match = _EQUATED.match(line)
        else:
            continue
        if match is None:
            if position == 0:
                continue
            return None
        code: Code = int(match[1]) if match[1].isdigit() else match[1]
        label = match[2].strip()
        coding[code] = dictionary.get(label, label)
    return _with_texts(coding)


def _with_texts(coding: Coding) -> Coding:
    return coding | {str(code): label for code, label in coding.items() if isinstance(code, int)}


def decode(value: Any, coding: Coding) -> str | None:
    """The label of a coded cell, or None if it is blank. For several codes with commas, their labels, sorted by code.

    Raises KeyError for a code that `coding` does not have.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if value in coding:
        return coding[value]
    if text in (NOT_AVAILABLE, "No"):
        return text
    text = text.rstrip(",")
    if not text:
        return None
    if text in coding:
        return coding[text]
    if "," not in text:
        raise KeyError(text)
    return ", ".join(coding[code.strip()] for code in sorted(text.split(",")))


def decode_column(name: str, values: Sequence[Any], coding: Coding) -> list[str | None]:
    """`decode` for a whole column. Raises InputError that names the column and the unknown codes."""
    decoded: dict[Any, str | None] = {}
    unknown = []
    for value in dict.fromkeys(values):
        try:
            decoded[value] = decode(value, coding)
        except KeyError as error:
            unknown.append(shown_code(error.args[0]))
    if unknown:
        known_codes = ", ".join(str(code) for code in coding if isinstance(code, str))
        raise InputError(f"data column {name}: code {', '.join(unknown[:5])} is not in its coding ({known_codes})")
    return [decoded[value] for value in values]


def ventilation_pair(used: Any, not_used: Any) -> tuple[Any, Any]:
    """Put a code of the two ventilation columns into the right one: 1 and 2 into the first, 3 and 4 into the second.

    Only codes that are texts are moved. Numbers stay where they are, as in the original.
    """
    if used in ("3", "4"):
        return NOT_AVAILABLE, used
    if used in ("1", "2"):
        return used, NOT_AVAILABLE
    if not_used in ("3", "4"):
        return NOT_AVAILABLE, not_used
    if not_used in ("1", "2"):
        return not_used, NOT_AVAILABLE
    return used, not_used
