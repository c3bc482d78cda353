"""Drafts a first codebook for a table, which a person then edits, and says what the person should check."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.cohorts.custom import guesses
from shared.cohorts.custom.codebook import Line
from shared.cohorts.custom.codes import YES, mixed_answers
from shared.cohorts.custom.decimals import FEW_MARKS, is_list, with_point
from shared.cohorts.custom.table import check_decided
from shared.cohorts.headers import MISSING_MARKS
from shared.cohorts.tables import WORKBOOK_DIGITS, RawTable, id_text, is_single, is_workbook
from shared.registry.features import as_number
from shared.registry.statistics import FEW_VALUES

FEW_CODES = 10  # a column with at most so many distinct whole numbers is drafted as codes
NAMED = 10  # at most so many columns are named in a message
LONGEST_LABEL = 40  # characters: a column with a longer text is free text
PROSE_WORDS = 4  # a column is free text too if half of its texts have at least so many words
KEYS = frozenset("subject patient case record pid mrn serial index".split())  # words in the names of columns of ids
SECTION, LATER = "Record", "Outcome"

BETWEEN = " | "  # separates the remarks on one column
OUTCOME = "looks like an outcome or comes after it: ignore it, or keep it in a last section and prepare with --causal"
NO_LABELS = (
    "codes without labels: write labels such as 1=Yes; 0=No, or give the kind number if the values count something"
)
SOME_LABELS = (
    "only some of its numbers have labels: check in the coding which of these mean missing, as in 999=, "
    "and which are numbers, as in 0=0"
)
UNSURE = "a label that may mean missing: then leave it empty, as in 9="
TO_ASK = "too many different texts to be asked for: give the kind category or text to show them"
PROSE = "free text, which may name a patient"
DATE_FORM = "looks like dates: write them as 2024-01-31 and give the kind datetime"
ANOTHER_KEY = "identifies rows, as the id does"
ANSWERS = "several answers in one cell: give the kind text to show them; to ask for them, make a column for each answer"
FROM_VALUES = (TO_ASK, NO_LABELS)  # remarks on columns that may be numbers
LISTS = "holds lists, structures or bytes"

_DATE = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./]\d{1,2}[./]\d{1,2}|\d{1,2}[ -][A-Za-z]{3}[ -]\d{2,4}")


def draft(table: RawTable, described: Mapping[str, Line] | None = None) -> list[Line]:
    """Draft the lines of a codebook: kinds, roles and sections from the names and values of columns, labels from the file.

    Columns that may identify a patient are drafted as `ignore`, so that no prompt shows them by accident: free text, columns
    whose names or values look like names, initials or phone numbers, and further columns of ids. Lists and structures are
    `ignore` too. Columns that look like outcomes come last. `look_at` says what a person should check. `described` are lines
    from a data dictionary; if the kind of one is empty, it is found from the values. Raises InputError if commas in numbers
    may be decimal marks or separators of thousands.
    """
    described = described or {}
    single = {name: cells for name, cells in table.columns.items() if all(map(is_single, cells))}
    columns = {
        name: [with_point(cell, table.decimal) for cell in cells if cell != ""] for name, cells in single.items()
    }
    id_column = next((name for name, line in described.items() if line.kind == "id" and name in columns), None)
    unique = [name for name, present in columns.items() if _is_unique(present, table.rows)]
    keys = [name for name in unique if _is_key(name, columns[name])]
    codes = [name for name in unique if not _all_numbers(columns[name]) and not _has_blanks(columns[name])]
    plain = [name for name in codes if not guesses.identifies(name, "", columns[name])]
    id_column = id_column or next(iter([*keys, *plain]), None) or _repeated_key(table, columns)
    lines = {}
    for name in table.columns:
        from_dictionary, label = described.get(name), table.labels.get(name, "")
        if name not in columns:
            line = Line(column=name, display_name=name, section=SECTION, kind="ignore", look_at=LISTS)
        elif name == id_column:
            line = _id_line(name, table, guessed=name not in described and name in plain and name not in keys)
        elif from_dictionary and from_dictionary.kind:
            line = from_dictionary
        elif reason := guesses.identifies(name, label, columns[name]) or (ANOTHER_KEY if name in keys else ""):
            line = Line(column=name, display_name=name, section=SECTION, kind="ignore", look_at=reason)
        else:
            line = _drafted(name, columns[name], table)
        if from_dictionary:
            line = dataclasses.replace(
                line,
                display_name=from_dictionary.display_name,
                section=from_dictionary.section if name != id_column else "",
            )
        else:
            line = dataclasses.replace(line, display_name=label or name)
        lines[name] = line
    check_decided(table, [name for name in columns if name != id_column and lines[name].look_at in ("", *FROM_VALUES)])
    return _arranged(lines, table, columns, described)


def _arranged(
    lines: Mapping[str, Line], table: RawTable, columns: Mapping[str, Sequence[Any]], described: Mapping[str, Line]
) -> list[Line]:
    """The lines with roles and sections filled in; those that look like outcomes come last."""
    shown = {name: line for name, line in lines.items() if line.kind not in ("id", "ignore")}
    later = {
        name
        for name in shown
        if guesses.is_later(name, shown[name].display_name, shown[name].kind) or _says_later(shown[name], columns[name])
    }
    kind_of_others = {name: line.kind for name, line in shown.items() if name not in later}
    role_of = {name: role for role, name in guesses.roles(kind_of_others, columns).items()}
    section_of = guesses.prefixes(name for name in kind_of_others if name not in described)
    arranged = []
    for name, line in lines.items():
        if name in later:
            line = dataclasses.replace(
                line, section=LATER, leak_group="outcome", look_at=_joined(line.look_at, OUTCOME)
            )
        elif name in role_of:
            guess = f"the role {role_of[name]} is a guess"
            line = dataclasses.replace(line, role=role_of[name], look_at=_joined(line.look_at, guess))
        if name in section_of:
            line = dataclasses.replace(line, section=section_of[name])
        arranged.append(line)
    return sorted(arranged, key=lambda line: line.column in later)  # a stable sort


def _says_later(line: Line, present: Sequence[Any]) -> bool:
    texts = {*line.labels, *(cell for cell in present if isinstance(cell, str))}
    return line.kind in ("category", "ordinal") and len(texts) <= FEW_VALUES and guesses.says_later(texts)


def _joined(*remarks: str) -> str:
    return BETWEEN.join(remark for remark in remarks if remark)


def _id_line(name: str, table: RawTable, *, guessed: bool) -> Line:
    texts = [id_text(cell) for cell in table.columns[name]]
    remark = "the id is a guess: a column that differs in every row" if guessed else ""
    if len(set(texts)) < len(texts):
        remark = (
            f"{len(set(texts)):,} ids in {len(texts):,} rows: rows look like visits, and one row must be one patient"
        )
    if any(text.isdigit() and len(text) > WORKBOOK_DIGITS for text in texts):
        spelled = all(isinstance(cell, str) for cell in table.columns[name])
        if not (is_workbook(table.path) and spelled):
            remark = _joined(
                remark, f"ids of more than {WORKBOOK_DIGITS} digits: Excel rounds such numbers; see that they are whole"
            )
    return Line(column=name, display_name=name, section="", kind="id", look_at=remark)


def _repeated_key(table: RawTable, columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The first column that is called an id, for a table in which no column has a different value in every row."""
    called = [name for name in columns if guesses.words(name)[-1:] == ["id"] or name.lower().endswith("id")]
    return next(
        (name for name in called if len(columns[name]) == table.rows and len(set(columns[name])) > FEW_VALUES), None
    )


def _is_unique(present: Sequence[Any], rows: int) -> bool:
    numbers = [as_number(cell) for cell in present]
    fractions = any(number == number and not number.is_integer() for number in numbers)
    return bool(present) and not fractions and len({str(cell) for cell in present}) == rows


def _is_key(name: str, present: Sequence[Any]) -> bool:
    """Whether a column of distinct values holds ids: by its name, or because it numbers the rows."""
    if name.lower().endswith(("id", "no", "number", "key", "번호")) or not KEYS.isdisjoint(guesses.words(name)):
        return True
    numbers = sorted(as_number(cell) for cell in present)
    return len(numbers) > 2 and all(second - first == 1 for first, second in itertools.pairwise(numbers))


def _is_prose(texts: Sequence[str]) -> bool:
    """Whether texts look like sentences and not like labels."""
    lengths = sorted(len(text.split()) for text in texts)
    return max(map(len, texts)) > LONGEST_LABEL or lengths[len(lengths) // 2] >= PROSE_WORDS


def _has_blanks(cells: Sequence[Any]) -> bool:
    return any(" " in str(cell).strip() for cell in cells)


def _all_numbers(cells: Sequence[Any]) -> bool:
    return all(not isinstance(cell, bool) and as_number(cell) == as_number(cell) for cell in cells)


def _drafted(name: str, present: Sequence[Any], table: RawTable) -> Line:
    """A line whose kind and coding are found from the values."""
    lists = any(map(is_list, table.columns[name]))
    kind, coding, look_at = kind_of(present) if not lists else ("ignore", {}, ANSWERS)
    labels = table.value_labels.get(name)
    if labels and _is_measured(name, table):
        kind, look_at = "number", SOME_LABELS
        codes = {id_text(cell): labels[cell] for cell in table.codes[name] if cell in labels}
        coding = {code: "" if label.lower() in guesses.UNSURE_LABELS else code for code, label in codes.items()}
    elif labels and kind in ("category", "ignore"):
        codes = {id_text(code): label for code, label in labels.items()}
        unlabelled = {id_text(cell): id_text(cell) for cell in table.codes[name] if cell != "" and cell not in labels}
        kind, coding, look_at = "category", _writable({**codes, **unlabelled}), ""
    if any(label.lower() in guesses.UNSURE_LABELS for label in coding.values()):
        look_at = _joined(look_at, UNSURE)
    return Line(column=name, display_name=name, section=SECTION, kind=kind, coding=coding, look_at=look_at)


def _is_measured(name: str, table: RawTable) -> bool:
    """Whether a column holds measured numbers: only a few of its distinct values have labels."""
    present = {cell for cell in table.codes[name] if cell != ""}
    plain = present - set(table.value_labels[name])
    return _all_numbers(list(present)) and len(plain) > max(FEW_MARKS, len(present) - len(plain))


def kind_of(present: Sequence[Any]) -> tuple[str, dict[str, str], str]:
    """The kind, the coding and a remark for a column, guessed from its values. The kind is `ignore` if a person must decide."""
    texts = list(dict.fromkeys(id_text(cell) for cell in present))
    marks = [text for text in texts if as_number(text) != as_number(text)]
    answers = mixed_answers(texts)
    if not texts:
        return "ignore", {}, "holds nothing"
    if answers:
        coding = {text: "Yes" if text.casefold() in YES else "No" for text in answers}
        others = {text: "" for text in texts if text not in coding}
        return (
            "category",
            coding | others,
            "yes or no has several spellings: check that the coding gives each the right label",
        )
    if all(hasattr(cell, "year") or _is_date(cell) for cell in present):
        return "datetime", {}, ""
    if _all_numbers(present):
        return _of_numbers(present, texts)
    if len(marks) <= FEW_MARKS and len(texts) - len(marks) > len(marks):
        coding = {mark: "" if mark.lower() in MISSING_MARKS else mark for mark in marks}
        return "number", _writable(coding), "texts among its numbers: check that the coding says what they mean"
    if all(_DATE.match(text) for text in texts):
        return "ignore", {}, DATE_FORM
    if _is_prose(texts):
        return "ignore", {}, PROSE
    if len(texts) <= min(FEW_VALUES, len(present) // 2):
        return "category", {}, ""
    return "ignore", {}, TO_ASK


def _of_numbers(present: Sequence[Any], texts: Sequence[str]) -> tuple[str, dict[str, str], str]:
    numbers = [float(as_number(cell)) for cell in present]
    if all(number.is_integer() for number in numbers) and len(texts) <= FEW_CODES:
        return "category", {code: code for code in sorted(texts, key=float)}, NO_LABELS
    code = guesses.missing_number(numbers)
    return "number", {}, f"{code} may mean missing: then give the coding {code}=" if code else ""


def _writable(coding: Mapping[str, str]) -> dict[str, str]:
    """The coding without codes that contain `=` or `;`, which the text of a coding cannot hold."""
    return {code: label for code, label in coding.items() if "=" not in code and ";" not in code}


def _is_date(cell: Any) -> bool:
    text = str(cell).strip()
    return len(text) >= 10 and text[4:5] == "-" and text[7:8] == "-" and text[:4].isdigit()


def open_remarks(lines: Sequence[Line]) -> str:
    """One line that says how many remarks a codebook still has; "" if it has none."""
    shown = [line for line in lines if line.look_at and line.kind != "ignore"]
    if not shown:
        return ""
    later = [line.column for line in shown if OUTCOME in line.look_at]
    names = ", ".join(later[:NAMED]) + (", ..." if len(later) > NAMED else "")
    about = f"; {len(later)} of them look like outcomes and are shown in records: {names}" if later else ""
    return (
        f"{len(shown)} lines of the codebook still hold a remark in look_at{about}; empty the cell once you have looked"
    )


def screen(lines: Sequence[Line]) -> list[str]:
    """What a person should check in a drafted codebook, as lines: columns that are not shown, then remarks on the others.

    Each remark is followed by the names of its columns.
    """
    report = []
    for ignored in (True, False):
        remarks: dict[str, list[str]] = {}
        for line in lines:
            if line.look_at and (line.kind == "ignore") == ignored:
                for remark in line.look_at.split(BETWEEN):
                    remarks.setdefault(remark, []).append(line.column)
        if remarks:
            report.append("not shown, drafted as ignore:" if ignored else "to look at before you prepare:")
            report += [f"  {remark}: {', '.join(columns)}" for remark, columns in remarks.items()]
    return report
