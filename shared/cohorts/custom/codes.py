"""Compares the codes in a column with the codebook: the same code in another spelling, and inconsistent spellings."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.cohorts.custom.codebook import Line
from shared.cohorts.custom.decimals import with_point
from shared.cohorts.headers import MISSING_MARKS
from shared.cohorts.tables import RawTable, shown_code
from shared.errors import InputError
from shared.registry.features import as_number

YES = frozenset("yes y true t 1 ja j oui o si sí s 예 네 はい 是".split())
NO = frozenset("no n false f 0 nein non 아니오 아니요 いいえ 否".split())
SHOWN = 3  # codes that a note names

_WHOLE = re.compile(r"[+-]?[0-9]+\.0+")


@dataclasses.dataclass(frozen=True)
class Codes:
    """How a column of codes is read.

    `same` maps another spelling of a code, such as 1.0, to the code in the codebook. `labels`: the cells are labels of the
    codebook in place of codes. `named` are labels that the file gives to numbers. `notes` say how codes were read.
    """

    cells: Sequence[Any]
    same: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: bool = False
    named: frozenset[str] = frozenset()
    notes: Sequence[str] = ()


def code_text(coding: Mapping[str, str], cell: Any) -> str:
    """The text of a cell as a codebook would write it. TRUE and FALSE take the spelling that `coding` has."""
    if isinstance(cell, bool):
        spellings = (str(cell).upper(), str(cell), str(cell).lower(), str(int(cell)))
        return next((text for text in spellings if text in coding), spellings[0])
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def is_blank(cell: Any) -> bool:
    """Whether a cell is missing, or a text of blanks."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def codes_of(line: Line, table: RawTable) -> Codes:
    """Decide how a column of codes is read.

    Raises InputError if an answer such as yes has several spellings and the codebook has no coding for them, or if the codes of
    the codebook are both codes and labels of the file, with different meanings.
    """
    cells, raw = table.columns[line.column], table.codes.get(line.column)
    if line.kind == "number":
        return _of_numbers(line, cells, raw, table.decimal)
    if not line.coding:
        return _without_coding(line, table, cells) if line.kind == "category" else Codes(cells)
    by_cells = _read_as(line, cells, table.decimal)
    by_raw = _read_as(line, raw, table.decimal) if raw is not None else None
    if by_raw is not None and not _unknown(line, by_raw):
        if not _unknown(line, by_cells) and _meaning(line, by_cells) != _meaning(line, by_raw):
            raise InputError(f"{table.path}: column {line.column}: the codes of its coding are both codes and labels of the "
                             f"file, with other meanings; use the labels of the file as codes")  # fmt: skip
        if _unknown(line, by_cells):
            note = f"column {line.column}: shown by the labels of the codebook, not by those of the file"
            return dataclasses.replace(by_raw, notes=[*by_raw.notes, note])
    texts = _texts(line, cells)
    if _unknown(line, by_cells) == texts and texts <= set(line.labels):
        return Codes(
            cells, labels=True, notes=[f"column {line.column}: holds the labels of its codes in place of these"]
        )
    return by_cells


def _of_numbers(line: Line, cells: Sequence[Any], raw: Sequence[Any] | None, decimal: str) -> Codes:
    """How a column of numbers is read, some of which the file shows as labels.

    A label is replaced by its number again if the codebook has that number as a code.
    """
    if raw is not None:
        cells = [
            code
            if code_text(line.coding, cell) not in line.coding and code_text(line.coding, code) in line.coding
            else cell
            for cell, code in zip(cells, raw, strict=True)
        ]
    named = frozenset() if raw is None else frozenset(str(cell) for cell in set(cells) - set(raw))
    return dataclasses.replace(_read_as(line, cells, decimal), named=named)


def _texts(line: Line, cells: Iterable[Any]) -> set[str]:
    return {code_text(line.coding, cell) for cell in cells if not is_blank(cell)}


def _read_as(line: Line, cells: Sequence[Any], decimal: str) -> Codes:
    """How cells are read with the coding: a text that equals exactly one code as a number, such as 1.0, is that code."""
    same = {}
    for text in _texts(line, cells) - set(line.coding):
        equal = equal_codes(line.coding, text, decimal)
        if len(equal) == 1:
            same[text] = equal[0]
    return Codes(cells, same, notes=_same_note(line, same))


def equal_codes(coding: Mapping[str, str], text: str, decimal: str = ".") -> list[str]:
    """The codes of `coding` that are equal to `text` as numbers."""
    number = as_number(with_point(text, decimal))
    return [code for code in coding if number == number and as_number(code) == number]


def _same_note(line: Line, same: Mapping[str, str]) -> list[str]:
    if not same:
        return []
    pairs = [f"{shown_code(text)} as {shown_code(code)}" for text, code in sorted(same.items())]
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return [f"column {line.column}: codes are read as those of the codebook: {', '.join(pairs[:SHOWN])}{more}"]


def _unknown(line: Line, codes: Codes) -> set[str]:
    return _texts(line, codes.cells) - set(line.coding) - set(codes.same)


def _meaning(line: Line, codes: Codes) -> list[str | None]:
    texts = [None if is_blank(cell) else code_text(line.coding, cell) for cell in codes.cells]
    return [None if text is None else line.coding[codes.same.get(text, text)] for text in texts]


def _without_coding(line: Line, table: RawTable, cells: Sequence[Any]) -> Codes:
    texts = _texts(line, cells)
    same = {text: text.partition(".")[0] for text in texts if _WHOLE.fullmatch(text)}
    mixed = mixed_answers(same.get(text, text) for text in texts)
    if mixed:
        raise InputError(f"{table.path}: column {line.column}: yes or no is written in several ways: {_listed(mixed)}; "
                         f"give a coding that says which mean the same: `{answers_coding(mixed)}`")  # fmt: skip
    notes = (
        [f"column {line.column}: whole numbers written with decimals, such as 1.0, are read without"] if same else []
    )
    by_letters = defaultdict(set)
    for text in texts:
        by_letters[text.casefold()].add(text)
    differing = sum(len(written) > 1 for written in by_letters.values())
    if differing:
        notes.append(f"column {line.column}: {differing} of its values also occur with other upper and lower case letters; "
                     f"these count as different values; give a coding if they are the same")  # fmt: skip
    return Codes(cells, same, notes=notes)


def mixed_answers(texts: Iterable[str]) -> list[str]:
    """The texts of a yes/no column in which yes or no has several spellings, yes first; empty for any other column."""
    distinct = sorted({text for text in texts if text.lower() not in MISSING_MARKS})
    yes = [text for text in distinct if text.casefold() in YES]
    no = [text for text in distinct if text.casefold() in NO]
    if not yes or len(yes) + len(no) < len(distinct) or max(len(yes), len(no)) < 2:
        return []
    return [*yes, *no]


def _listed(answers: Sequence[str]) -> str:
    yes = [text for text in answers if text.casefold() in YES]
    no = [text for text in answers if text.casefold() in NO]
    return " and ".join(", ".join(group) for group in (yes, no) if group)


def answers_coding(answers: Iterable[str]) -> str:
    """A coding that maps every spelling of yes to Yes, and every spelling of no to No."""
    return "; ".join(f"{text}={'Yes' if text.casefold() in YES else 'No'}" for text in answers)


def unknown_code(line: Line, text: str, decimal: str) -> str:
    """Why a text is not a code of a column: the words for a message."""
    if len(equal_codes(line.coding, text, decimal)) > 1:
        return f"may be any of the codes {', '.join(equal_codes(line.coding, text, decimal))} of the codebook"
    if text in line.labels:
        return "a label of the codebook among codes; add it to the coding, as in `1=Yes; Yes=Yes`"
    answers = {code.casefold() for code in line.coding} | {label.casefold() for label in line.labels}
    if text.casefold() in YES | NO and answers & (YES | NO):
        return "another way to write yes or no than the coding has; add it, as in `1=Yes; Y=Yes`"
    if text.casefold() in {code.casefold() for code in line.coding}:
        return "a code that the codebook has with other upper and lower case letters"
    return "a code that the codebook does not have"
