"""A patient's record as text, in the three forms of the original (spec: registry, c)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from shared.questions.record import MASK

HOSPITAL = "[Derived variable/Hospital factor]"
HOSPITAL_FIRST = "[Baseline Characteristics/Hospital Information]"
ID = "Unique ID"

Style = Literal["sections", "lines", "days"]
Row = Mapping[str, Any]


class CannotShow(ValueError):
    """The original's program stopped here: the record has two hospital sections."""


@dataclasses.dataclass(frozen=True)
class Place:
    """How a column is shown: its display name, and the header of its section ("" if it has none)."""

    name: str
    section: str = ""


Places = Mapping[str, Place]


def is_missing(value: Any) -> bool:
    """Whether a cell is missing: None, NaN or ""."""
    return value is None or value != value or (isinstance(value, str) and value == "")


def show(style: Style, row: Row, places: Places, *, masked: Collection[str], hidden: Collection[str]) -> str:
    """The text of a record, with the values in `masked` replaced by a mask, and without the columns in `hidden`.

    As in the original, the style `lines` shows hidden columns too, and `days` gives "" if the record ends before a masked value.
    Raises CannotShow for a record with two hospital sections.
    """
    if style == "lines":
        return _lines(row, places, masked)
    return _sections(row, places, masked, hidden) if style == "sections" else _days(row, places, masked, hidden)


def _lines(row: Row, places: Places, masked: Collection[str]) -> str:
    shown = (f"{places[name].name}: {_text(name, value, masked).strip()}" for name, value in _present(row, places))
    return "\n".join(shown).strip()


def _present(row: Row, places: Places) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in row.items() if name in places and not is_missing(value))


def _text(name: str, value: Any, masked: Collection[str]) -> str:
    return MASK if name in masked else str(value)


def _sections(row: Row, places: Places, masked: Collection[str], hidden: Collection[str]) -> str:
    parts: list[str] = []
    current = None
    for name, value in _present(row, places):
        if name in hidden:
            continue
        place = places[name]
        if place.section != current:
            current = place.section
            parts.append(f"\n{current}\n")
        parts.append(f"{place.name.strip()}: {_text(name, value, masked)}\n")
    text = "".join(parts)
    if HOSPITAL not in text:
        return text.strip()
    if text.count(HOSPITAL) > 1:
        raise CannotShow("a second hospital section")
    before, after = text.split(HOSPITAL)
    return f"{HOSPITAL_FIRST}\n{after.strip()}\n\n{before.strip()}".strip()


def _days(row: Row, places: Places, masked: Collection[str], hidden: Collection[str]) -> str:
    parts: list[str] = []
    for text in sections_until_empty(row, places, masked=masked, hidden=hidden):
        parts.append(text.whole)
        if text.empty:
            whole = "".join(parts)
            return whole.strip() if MASK in whole else ""
    return "".join(parts).strip()


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a record: `header`, and `whole`, the header and its lines.

    `empty`: nothing is shown below the header, and another section follows.
    """

    header: str
    whole: str
    empty: bool


def sections_until_empty(
    row: Row, places: Places, *, masked: Collection[str], hidden: Collection[str]
) -> Iterator[Section]:
    """The sections in order, up to and with the first empty one. The last section of a record never counts as empty."""
    header, lines = None, list[str]()
    for name, value in row.items():
        if name not in places or name in hidden:
            continue
        place = places[name]
        if place.section != header:
            if header is not None:
                yield Section(header, f"\n{header}\n{''.join(lines)}", empty=not lines)
                if not lines:
                    return
            header, lines = place.section, []
        if not is_missing(value):
            lines.append(f"{place.name}: {_text(name, value, masked)}\n")
    if header is not None:
        yield Section(header, f"\n{header}\n{''.join(lines)}", empty=False)
