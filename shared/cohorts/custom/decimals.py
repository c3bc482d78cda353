"""Finds out whether the numbers of a text file have decimal points or decimal commas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.registry.features import as_number

FEW_MARKS = 3  # a column of numbers may have at most so many other distinct texts, such as <0.3 or NA
NAMED = 3  # at most so many columns are named in a note

_WHOLE = re.compile(r"[+-]?\d+([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234: the comma is a decimal comma or separates thousands
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}((,\d{3}){2,}(\.\d+)?|(,\d{3})+\.\d+)")  # 1,234,567 or 1,234.5
_DOTTED = re.compile(r"[+-]?[1-9]\d{0,2}((\.\d{3}){2,}(,\d+)?|(\.\d{3})+,\d+)")  # 1.234.567 or 1.234,5
_LIST = re.compile(r"\s*\d+(\s*,\s*\d+){2,}\s*")  # 1,2,3: several answers


def with_point(cell: Any, decimal: str) -> Any:
    """A cell of a column of numbers, with a decimal point in place of a decimal comma. Any other cell is not changed.

    If the decimal mark is a comma, a text with a point is not changed either; `misread` reports it.
    """
    if decimal != "," or not isinstance(cell, str):
        return cell
    text = cell.strip()
    if _COMMA.fullmatch(text):
        return text.replace(",", ".")
    return cell


def is_list(cell: Any) -> bool:
    """Whether a text is a list of codes of several answers, such as 1,2,3."""
    return isinstance(cell, str) and _LIST.fullmatch(cell) is not None and not _THOUSANDS.fullmatch(cell.strip())


def misread(cell: Any, decimal: str) -> str:
    """Why a text that looks like a number cannot be read as one; "" for any other cell."""
    text = cell.strip() if isinstance(cell, str) else ""
    if _THOUSANDS.fullmatch(text) or _DOTTED.fullmatch(text) or (decimal == "." and _EITHER.fullmatch(text)):
        return "a number with marks of thousands; write it without them"
    if decimal == "," and as_number(text) == as_number(text) and "." in text:
        return "a decimal point, where decimal commas are read (--decimal)"
    if decimal == "." and _COMMA.fullmatch(text):
        return "a decimal comma, where decimal points are read (--decimal)"
    return ""


def decimal_mark(columns: Mapping[str, Sequence[Any]]) -> tuple[str, list[str], dict[str, int]]:
    """The decimal mark of a file, the columns that show that it is a comma, and the columns that are ambiguous.

    In an ambiguous column a number such as 1,234 may have a decimal comma or a separator of thousands; the value is the row of
    one such number, from 0. Only columns of numbers are examined, not texts and not lists such as 1,2,3.
    """
    if not any(isinstance(cell, str) and "," in cell for cells in columns.values() for cell in cells):
        return ".", [], {}
    commas, points, either = list[str](), False, dict[str, int]()
    for name, cells in columns.items():
        texts = [str(cell).strip() for cell in cells]
        if not _is_of_numbers(texts):
            continue
        if any((_COMMA.fullmatch(text) and not _EITHER.fullmatch(text)) or _DOTTED.fullmatch(text) for text in texts):
            commas.append(name)
        points = points or any(_has_point(text) for text in texts)
        first = next((place for place, text in enumerate(texts) if _EITHER.fullmatch(text)), None)
        if first is not None:
            either[name] = first
    if commas and not points:
        return ",", commas, {}
    return ".", [], {} if points else either


def _has_point(text: str) -> bool:
    return _THOUSANDS.fullmatch(text) is not None or ("." in text and as_number(text) == as_number(text))


def _is_of_numbers(texts: Sequence[str]) -> bool:
    distinct = {text for text in texts if text}
    others = {text for text in distinct if not _looks_like_number(text)}
    return len(others) <= FEW_MARKS and len(distinct) > len(others) and not any(map(is_list, others))


def _looks_like_number(text: str) -> bool:
    patterns = (_WHOLE, _COMMA, _THOUSANDS, _DOTTED)
    return as_number(text) == as_number(text) or any(pattern.fullmatch(text) for pattern in patterns)
