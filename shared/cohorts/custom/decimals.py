"""Decimal points and decimal commas: which of the two the numbers of a text file have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.registry.features import as_number

FEW_MARKS = 3  # so many other texts, such as <0.3 or NA, may stand among a column's numbers
NAMED = 3  # columns that a note names

_WHOLE = re.compile(r"[+-]?\d+([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234: a decimal comma, or a thousand
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}((,\d{3}){2,}(\.\d+)?|(,\d{3})+\.\d+)")  # 1,234,567 or 1,234.5
_DOTTED = re.compile(r"[+-]?[1-9]\d{0,2}((\.\d{3}){2,}(,\d+)?|(\.\d{3})+,\d+)")  # 1.234.567 or 1.234,5
_LIST = re.compile(r"\s*\d+(\s*,\s*\d+){2,}\s*")  # 1,2,3: several answers


def with_point(cell: Any, decimal: str) -> Any:
    """A cell of a column of numbers, spelled with a decimal point; any other as it is, and so is a text with a point where
    commas are read: it is then no number."""
    if decimal != "," or not isinstance(cell, str):
        return cell
    text = cell.strip()
    if _COMMA.fullmatch(text):
        return text.replace(",", ".")
    return cell


def is_list(cell: Any) -> bool:
    """Whether a text lists several answers by their codes, such as 1,2,3."""
    return isinstance(cell, str) and _LIST.fullmatch(cell) is not None and not _THOUSANDS.fullmatch(cell.strip())


def misread(cell: Any, decimal: str) -> str:
    """Why a text that looks like a number is none, "" where it does not."""
    text = cell.strip() if isinstance(cell, str) else ""
    if _THOUSANDS.fullmatch(text) or _DOTTED.fullmatch(text) or (decimal == "." and _EITHER.fullmatch(text)):
        return "a number with marks of thousands; write it without them"
    if decimal == "," and as_number(text) == as_number(text) and "." in text:
        return "a decimal point, where decimal commas are read (--decimal)"
    if decimal == "." and _COMMA.fullmatch(text):
        return "a decimal comma, where decimal points are read (--decimal)"
    return ""


def decimal_mark(columns: Mapping[str, Sequence[Any]]) -> tuple[str, list[str], dict[str, int]]:
    """The mark of decimals, the columns that show that it is a comma, and those in which nothing shows what a comma is.

    The last are columns of numbers such as 1,234, each with the place of one (from 0). Only columns of numbers count: texts,
    and lists such as 1,2,3, say nothing.
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
    present = {text for text in texts if text}
    others = {text for text in present if not _looks_like_number(text)}
    return len(others) <= FEW_MARKS and len(present) > len(others) and not any(map(is_list, others))


def _looks_like_number(text: str) -> bool:
    patterns = (_WHOLE, _COMMA, _THOUSANDS, _DOTTED)
    return as_number(text) == as_number(text) or any(pattern.fullmatch(text) for pattern in patterns)
