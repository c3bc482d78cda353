"""Reads the ratings of a blinded review, from the raters' sheets or from the file of the web page, and summarises them.

A sheet is a workbook or a CSV file with one row for each case. Each row names its review, rater and case, because the answers 1
and 2 are different models for each rater: a sheet read in the name of another rater would give wrong figures. Sheets of earlier
versions do not name them, and the oldest call the answers A and B; these can be read too.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
from openpyxl.styles import Font
from openpyxl.worksheet.datavalidation import DataValidation
from scipy.stats import binomtest

from shared.cohorts.tables import RawTable, read_table
from shared.errors import InputError
from shared.evaluation.intervals import interval_of
from shared.review.agreement import agreed, alpha
from shared.review.store import BETTER, GRADES, STORE_FILE, Said, Store
from shared.storage import files
from shared.training.metrics_log import plain

COLUMNS = ("case", "better", "grade_1", "grade_2", "comment")
MARK = "sheet"  # the column that names the review, the rater and the case of a row
IS_MARK = re.compile(r"review (?P<review>\w+) rater (?P<rater>[\w-]+) case (?P<case>\d+)")
EARLIER_COLUMNS = ("case", "better", "grade_a", "grade_b", "comment")
EARLIER_WORDS = {"A": "1", "B": "2", "equal": "equal"}
SIGNS = {"first": -1.0, "equal": 0.0, "second": 1.0}

Ratings = Mapping[str, Mapping[int, Said]]  # by rater and number of the case


@dataclasses.dataclass(frozen=True)
class Key:
    """The key of a review: which answer is from which model.

    `names` are the two models. `drawn` has, for each rater, the id of each case, and whether the second model's answer is shown
    as 1. `review` is the id of the review ("" in keys of earlier versions). `identical` is the number of pairs left out (None in
    such keys). `marked`: the sheets of this review name review, rater and case.
    """

    names: tuple[str, str]
    drawn: dict[str, list[tuple[str, bool]]]
    review: str
    identical: int | None
    marked: bool


def read_key(path: Path) -> Key:
    """Read the key of a review. Raises InputError if the file holds something else."""
    content = files.read_json(path)
    if not _is_key(content):
        raise InputError(f"{path}: not the key of a review; it is the file that --key named when cases were written")
    drawn = {
        rater: [(place["id"], place.get("second_is_1", place.get("second_is_a"))) for place in places]
        for rater, places in content["raters"].items()
    }
    return Key(
        tuple(content["names"]),
        drawn,
        content.get("review", ""),
        content.get("identical"),
        content.get("marked") is True,
    )


def _is_key(content: Any) -> bool:
    if not isinstance(content, dict) or not {"names", "raters"} <= set(content):
        return False
    names, raters = content["names"], content["raters"]
    if not isinstance(names, list) or len(names) != 2 or not isinstance(raters, dict):
        return False
    places = [place for drawn in raters.values() for place in (drawn if isinstance(drawn, list) else [None])]
    return all(
        isinstance(place, dict)
        and isinstance(place.get("id"), str)
        and isinstance(place.get("second_is_1", place.get("second_is_a")), bool)  # the latter in earlier versions
        for place in places
    )


def read_store(folder: Path, key: Key) -> dict[str, dict[int, Said]]:
    """The ratings from the web page of the review in `folder`, by rater and number of the case.

    Raises InputError if the key belongs to another review, or there is no review in `folder`.
    """
    store = Store(folder / STORE_FILE)
    try:
        if store.review != key.review:
            raise InputError(f"{folder}: the key is of another review; give the one that was written with these cases")
        return {rater: store.said(rater) for rater in store.counts}
    finally:
        store.close()


def says_whose(path: Path) -> bool:
    """Whether a sheet names its review and rater. Raises InputError if it cannot be read."""
    return MARK in _read(path).columns


def read_sheet(path: Path, key: Key, rater: str) -> dict[int, Said]:
    """Read the sheet of `rater`: the ratings by number of the case. A case without a row is not rated.

    Rows may be in any order. Raises InputError for a rater who is not in the key, for a sheet of another review or rater, and
    for a wrong cell, with its row and column.
    """
    _check_raters([rater], key)
    cases = len(key.drawn[rater])
    sheet = _read(path)
    earlier = "grade_a" in sheet.columns or "grade_b" in sheet.columns
    columns = EARLIER_COLUMNS if earlier else COLUMNS
    words = EARLIER_WORDS if earlier else {word: word for word in BETTER}
    missing = [name for name in columns[:-1] if name not in sheet.columns]
    if missing:
        raise InputError(f"{path}: these columns are missing: {', '.join(missing)}")
    if key.marked and MARK not in sheet.columns:
        raise InputError(
            f"{path}: the column {MARK} is missing, so nothing says that these are the ratings of {rater}; copy it back from "
            "the workbook that was written for this rater"
        )
    meaning_of = {word.lower(): meaning for word, meaning in words.items()}
    comments = sheet.columns.get("comment", [""] * sheet.rows)
    ratings: dict[int, Said] = {}
    for row in range(sheet.rows):
        case, better, *grades = (_text(sheet.columns[name][row]) for name in columns[:-1])
        where = f"{path}, row {sheet.number(row)}"
        if not (case.isascii() and case.isdecimal()) or not 1 <= int(case) <= cases:
            raise InputError(f"{where}: case must be a number from 1 to {cases}")
        if int(case) in ratings:
            raise InputError(f"{where}: case {case} comes twice")
        if MARK in sheet.columns:
            _check_mark(where, _text(sheet.columns[MARK][row]), key.review, rater, int(case))
        if better and better.lower() not in meaning_of:
            raise InputError(f"{where}: better must be {', '.join(list(words)[:-1])} or {list(words)[-1]}")
        for name, grade in zip(columns[2:4], grades, strict=True):
            if grade and grade not in GRADES:
                raise InputError(f"{where}: {name} must be a whole number from 1 to 5")
        ratings[int(case)] = Said(meaning_of.get(better.lower(), ""), grades[0], grades[1], _text(comments[row]))
    return ratings


def _read(path: Path) -> RawTable:
    if not path.is_file():
        raise InputError(f"{path}: no such file of ratings")
    return read_table(path)


def _mark(review: str, rater: str, case: int) -> str:
    """The text of the column MARK. The review is "unknown" if the key is of an earlier version, which has no id of the review."""
    return f"review {review or 'unknown'} rater {rater} case {case}"


def _check_mark(where: str, mark: str, review: str, rater: str, case: int) -> None:
    """Raise InputError if the mark of a row is missing, or names another review, rater or case. The message gives the fix."""
    if mark == _mark(review, rater, case):
        return
    named = IS_MARK.fullmatch(mark)
    if named is None:
        raise InputError(
            f"{where}: {MARK} was changed or is blank; copy this column back from the workbook as it was written"
        )
    if named["review"] != (review or "unknown"):
        raise InputError(
            f"{where}: this sheet is of another review; give the key that was written with it, or the right sheet"
        )
    if named["rater"] != rater:
        raise InputError(
            f"{where}: this sheet is of the rater {named['rater']}, and --ratings gives it as that of {rater}"
        )
    raise InputError(
        f"{where}: this row is of case {named['case']}, and case says {case}; sort whole rows, all columns together, and take "
        f"the column case back from the workbook as it was written"
    )


def write_sheet(path: Path, cases: int, said: Mapping[int, Said], *, review: str, rater: str) -> None:
    """Write the workbook that `rater` fills in: a row for each of the `cases` cases, with the ratings in `said` filled in.

    `review` is the id of the review. Raises InputError if the file cannot be written.
    """
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([*COLUMNS, MARK])
    for number in range(1, cases + 1):
        rating = said.get(number, Said())
        marks = (rating.better, rating.grade_1, rating.grade_2)
        sheet.append([number, *(int(mark) if mark.isdecimal() else mark or None for mark in marks)])
        if rating.comment:
            cell = sheet.cell(row=number + 1, column=len(COLUMNS), value=rating.comment)
            cell.data_type = "s"  # a comment that begins with "=" must not become a formula
        mark = sheet.cell(row=number + 1, column=len(COLUMNS) + 1, value=_mark(review, rater, number))
        mark.font = Font(color="808080")
    for letters, allowed in (("B", BETTER), ("CD", GRADES)):
        rule = DataValidation(type="list", formula1=f'"{",".join(allowed)}"', allow_blank=True, showErrorMessage=True)
        sheet.add_data_validation(rule)
        rule.add(f"{letters[0]}2:{letters[-1]}{cases + 1}")
    sheet.freeze_panes = "B2"
    sheet.column_dimensions["E"].width = 60
    sheet.column_dimensions["F"].width = 45
    content = io.BytesIO()
    with files.writing(path.parent):  # openpyxl keeps each sheet in a temporary file
        book.save(content)
    files.write_bytes(path, content.getvalue())


def write_sheets(folder: Path, ratings: Ratings, key: Key) -> None:
    """Write `folder/RATER.xlsx` with the ratings of each rater. Raises InputError if the folder exists already."""
    if folder.exists():
        raise InputError(f"{folder}: is there already; give a new folder, so that no sheet is lost")
    _check_raters(list(ratings), key)
    with files.replacing(folder) as temporary:
        temporary.mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
        for rater, said in ratings.items():
            write_sheet(temporary / f"{rater}.xlsx", len(key.drawn[rater]), said, review=key.review, rater=rater)


def summarise(ratings: Ratings, key: Key, *, bootstrap: int, seed: int) -> dict[str, Any]:
    """The results of a review as JSON values. They are the same for ratings from sheets and from the web page.

        better      how many ratings prefer each model, or neither
        preference  the mean of -1 (first is better), 0 (equal) and +1 (second is better) over ratings
        ci          a 95 % bootstrap interval of it; cases are resampled `bootstrap` times
        p           a two-sided sign test over cases; each case counts once, with the mean of its ratings
        grades      the mean grade of each model, and the difference with its `ci`
        said_1      the share of "1" among ratings that are not equal; one half if the position of an answer has no effect
        agreement   Krippendorff's alpha of preferences (nominal) and grades (ordinal), and the share of equal preferences
        identical   how many pairs were not shown because both answers are the same; None if the key does not say
        possible    the number of ratings if every rater had rated every case
        raters      for each rater, `open` (the number of cases not rated) and `better`

    Raises InputError for a rater who is not in the key, and if no case is rated.
    """
    _check_raters(list(ratings), key)
    rows = [row for rater, said in ratings.items() for row in _unblinded(rater, said, key.drawn[rater])]
    table = pd.DataFrame(rows, columns=["rater", "id", "said", "better", "first", "second"])
    rated = table[table["better"].notna()].assign(sign=lambda rows: rows["better"].map(SIGNS).astype(float))
    if rated.empty:
        raise InputError("no case has been rated yet: nobody has said which answer is better")
    graded = table[table["first"].notna() & table["second"].notna()]
    change = (graded["second"] - graded["first"]).astype(float)
    by_case = rated.groupby("id")["sign"].mean()
    for_second, uneven = int((by_case > 0).sum()), int((by_case != 0).sum())
    decided = rated[rated["said"] != "equal"]
    return plain(
        {
            "names": list(key.names),
            "identical": key.identical,
            "cases": int(table["id"].nunique()),
            "possible": len(table),
            "ratings": len(rated),
            "better": {name: int((rated["better"] == name).sum()) for name in SIGNS},
            "preference": rated["sign"].mean(),
            "ci": interval_of(rated["sign"], rated["id"], bootstrap, seed),
            "p": float(binomtest(for_second, uneven).pvalue) if uneven else 1.0,
            "grades": {
                "first": graded["first"].astype(float).mean(),
                "second": graded["second"].astype(float).mean(),
                "difference": change.mean(),
                "ci": interval_of(change, graded["id"], bootstrap, seed) if len(graded) else None,
            },
            "said_1": (decided["said"] == "1").mean(),
            "agreement": _agreement(table),
            "raters": {
                rater: {
                    "open": int(part["better"].isna().sum()),
                    "better": {name: int((part["better"] == name).sum()) for name in SIGNS},
                }
                for rater, part in table.groupby("rater", sort=False)
            },
        }
    )


def _check_raters(raters: Sequence[str], key: Key) -> None:
    unknown = sorted(set(raters) - set(key.drawn))
    if unknown:
        raise InputError(f"the key knows no rater {', '.join(unknown)}; known are {', '.join(key.drawn)}")


def _unblinded(rater: str, said: Mapping[int, Said], drawn: list[tuple[str, bool]]) -> list[tuple[Any, ...]]:
    """For each case: rater, id, what the rater said, which model is better, the grade of the first and of the second model."""
    rows = []
    for number, (name, second_is_1) in enumerate(drawn, start=1):
        rating = said.get(number, Said())
        models = ("second", "first") if second_is_1 else ("first", "second")
        better = {"": None, "equal": "equal", "1": models[0], "2": models[1]}[rating.better]
        grades = [int(grade) if grade else None for grade in (rating.grade_1, rating.grade_2)]
        rows.append((rater, name, rating.better or None, better, *(grades[::-1] if second_is_1 else grades)))
    return rows


def _agreement(table: pd.DataFrame) -> dict[str, float | None]:
    signs = table.assign(sign=table["better"].map(SIGNS).astype(float))
    wide = signs.pivot(index="rater", columns="id", values="sign").to_numpy()
    grades = [
        table.astype({name: float}).pivot(index="rater", columns="id", values=name) for name in ("first", "second")
    ]
    said = [[None if value != value else value for value in row] for row in wide.tolist()]
    return {
        "preference_alpha": alpha(wide, "nominal"),
        "equal_preferences": agreed(said),
        "grades_alpha": alpha(np.concatenate([part.to_numpy() for part in grades], axis=1), "ordinal"),
    }


def _text(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
