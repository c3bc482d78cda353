"""Blinded review by clinicians: two models' answers side by side, neither named, and what the raters made of them.

A case holds what both models were given and their answers as A and B. Which is which is drawn for each rater and case and
stands in the key alone, a file kept apart from what raters get. A rater fills in a sheet: which answer is better, and a
grade for each. (The original showed such pairs to its raters and had no place for their ratings; spec: registry, f.)
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
from openpyxl.worksheet.datavalidation import DataValidation
from scipy.stats import binomtest

from shared import files
from shared.agreement import agreed, alpha
from shared.cohorts.tables import read_table
from shared.errors import InputError
from shared.evaluation import interval_of
from shared.metrics import plain
from shared.randomness import generator
from shared.report import write_html

COLUMNS = ("case", "better", "grade_a", "grade_b", "comment")
BETTER = ("A", "B", "equal")
GRADES = ("1", "2", "3", "4", "5")  # 5 is best
SIGNS = {"first": -1.0, "equal": 0.0, "second": 1.0}
RATER = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model was given and what it answered; `answer` is the right one where there is such, else ""."""

    id: str
    question: str
    completion: str
    answer: str = ""


def read_replies(path: Path) -> dict[str, Reply]:
    """Replies by id from a file with one JSON object a line, as `launch.evaluate --completions` writes it.

    Raises InputError naming the line that is wrong, never with what it holds.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # texts may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable file of answers ({type(error).__name__})") from None
    found: dict[str, Reply] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            reply = Reply(row["id"], row["question"], row["completion"], row.get("answer") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}, line {number}: must be a JSON object with id, question, completion") from None
        if not all(isinstance(text, str) for text in dataclasses.astuple(reply)):
            raise InputError(f"{path}, line {number}: id, question, completion and answer must be texts")
        if reply.id in found:
            raise InputError(f"{path}, line {number}: its id comes twice")
        found[reply.id] = reply
    return found


def export(
    first: Path,
    second: Path,
    *,
    names: tuple[str, str],
    raters: Sequence[str],
    count: int,
    out: Path,
    key: Path,
    seed: int,
) -> int:
    """Write `out/RATER/cases.html` and `out/RATER/ratings.xlsx` for each rater, and `key`; returns the number of cases.

    `count` cases (0: all) are drawn, the same for every rater, each rater's in an order of their own. Raises InputError
    where the models were not asked the same, a rater's name cannot be a folder's, or files would be replaced.
    """
    one, other = read_replies(first), read_replies(second)
    ids = sorted(set(one) & set(other))
    if not ids:
        raise InputError(f"{first} and {second}: no id is in both; ask both models the same")
    if any(one[name].question != other[name].question for name in ids):
        raise InputError(f"{first} and {second}: a question of the same id differs; ask both models the same")
    _check_places(names, raters, out, key)
    chosen = sorted(generator(seed, "review").permutation(ids)[: count or None].tolist())
    drawn: dict[str, list[dict[str, Any]]] = {}
    with files.replacing(out) as temporary:
        for rater in raters:
            random = generator(seed, "review", rater)
            order = random.permutation(chosen).tolist()
            turned = random.permutation(np.arange(len(order)) % 2 == 1).tolist()  # each model is A in half of the cases
            drawn[rater] = [{"id": name, "second_is_a": turn} for name, turn in zip(order, turned, strict=True)]
            cases = []
            for name, turn in zip(order, turned, strict=True):
                pair = one[name], other[name]
                a, b = pair[::-1] if turn else pair
                cases.append({"question": a.question, "right": a.answer, "a": a.completion, "b": b.completion})
            _write_rater(temporary / rater, rater, cases)
    files.write_json(key, {"names": list(names), "seed": seed, "raters": drawn})
    return len(chosen)


def _check_places(names: tuple[str, str], raters: Sequence[str], out: Path, key: Path) -> None:
    if not raters or len(set(raters)) < len(raters):
        raise InputError("--raters: name each rater once")
    wrong = [rater for rater in raters if not RATER.fullmatch(rater)]
    if wrong:
        raise InputError(f"--raters: {wrong[0]!r} must be letters, digits, hyphens and underscores")
    if names[0] == names[1]:
        raise InputError("--names: the two models need different names")
    if out.resolve() in key.resolve().parents:
        raise InputError(f"--key={key}: lies in --out, where raters would find it; keep it elsewhere")
    for path in (out, key):
        if path.exists():
            raise InputError(f"{path}: is there already; a new review needs a new place, so that no rating is lost")


def _write_rater(folder: Path, rater: str, cases: Sequence[Mapping[str, str]]) -> None:
    folder.mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
    write_html(folder / "cases.html", "review.html", {"rater": rater, "cases": cases})
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(COLUMNS)
    for number in range(1, len(cases) + 1):
        sheet.append([number])
    for letters, allowed in (("B", BETTER), ("CD", GRADES)):
        rule = DataValidation(type="list", formula1=f'"{",".join(allowed)}"', allow_blank=True, showErrorMessage=True)
        sheet.add_data_validation(rule)
        rule.add(f"{letters[0]}2:{letters[-1]}{len(cases) + 1}")
    sheet.freeze_panes = "B2"
    sheet.column_dimensions["E"].width = 60
    content = io.BytesIO()
    with files.writing(folder):  # openpyxl keeps each sheet in a temporary file
        book.save(content)
    files.write_bytes(folder / "ratings.xlsx", content.getvalue())


def summarise(ratings: Mapping[str, Path], key: Path, *, bootstrap: int, seed: int) -> dict[str, Any]:
    """What the raters found, ready for JSON; `ratings` is each rater's filled-in sheet (workbook or CSV).

    `better`: counts of the ratings; `preference`: mean of -1 (first), 0 (equal), +1 (second) over ratings, with a 95 %
    `ci` that resamples cases; `p`: two-sided sign test of the cases, each counted once by its mean; `grades`: mean grade
    of each model and their difference with `ci`; `said_a`: share of "A" among the ratings that are not equal, one half
    where the place does not sway the raters; `agreement`: Krippendorff's alpha of preferences (nominal) and of grades
    (ordinal), and the share of equal preferences. `open`: cases that a rater left out. Raises InputError for a key or a
    sheet that does not fit, naming row and column.
    """
    known = _read_key(key)
    unknown = sorted(set(ratings) - set(known["raters"]))
    if unknown:
        raise InputError(f"{key}: knows no rater {', '.join(unknown)}; known are {', '.join(known['raters'])}")
    rows = [row for rater, path in ratings.items() for row in _read_ratings(path, rater, known["raters"][rater])]
    table = pd.DataFrame(rows, columns=["rater", "id", "said", "better", "first", "second"])
    rated = table[table["better"].notna()].assign(sign=lambda found: found["better"].map(SIGNS).astype(float))
    if rated.empty:
        raise InputError("no case has been rated yet: the column better is empty in every sheet")
    graded = table[table["first"].notna() & table["second"].notna()]
    change = (graded["second"] - graded["first"]).astype(float)
    by_case = rated.groupby("id")["sign"].mean()
    for_second, uneven = int((by_case > 0).sum()), int((by_case != 0).sum())
    decided = rated[rated["said"] != "equal"]
    return plain(
        {
            "names": known["names"],
            "cases": int(table["id"].nunique()),
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
            "said_a": (decided["said"] == "A").mean(),
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


def _read_key(key: Path) -> dict[str, Any]:
    known = files.read_json(key)
    if not _is_key(known):
        raise InputError(f"{key}: not the key of a review; it is the file that --key named when cases were written")
    return known


def _is_key(known: Any) -> bool:
    if not isinstance(known, dict) or not {"names", "raters"} <= set(known):
        return False
    names, raters = known["names"], known["raters"]
    if not isinstance(names, list) or len(names) != 2 or not isinstance(raters, dict):
        return False
    places = [place for drawn in raters.values() for place in (drawn if isinstance(drawn, list) else [None])]
    return all(isinstance(place, dict) and {"id", "second_is_a"} <= set(place) for place in places)


def _read_ratings(path: Path, rater: str, drawn: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """(rater, id, what was said, which model is better, grade of the first, of the second) for each case."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of ratings")
    sheet = read_table(path)
    missing = [name for name in COLUMNS[:-1] if name not in sheet.columns]
    if missing:
        raise InputError(f"{path}: these columns are missing: {', '.join(missing)}")
    found: dict[int, tuple[Any, ...]] = {}
    for row in range(sheet.rows):
        case, said, grade_a, grade_b = (_text(sheet.columns[name][row]) for name in COLUMNS[:-1])
        where = f"{path}, row {sheet.number(row)}"
        if not (case.isascii() and case.isdecimal()) or not 1 <= int(case) <= len(drawn):
            raise InputError(f"{where}: case must be a number from 1 to {len(drawn)}")
        if int(case) in found:
            raise InputError(f"{where}: case {case} comes twice")
        said = {option.lower(): option for option in BETTER}.get(said.lower(), said)
        if said and said not in BETTER:
            raise InputError(f"{where}: better must be A, B or equal")
        for name, grade in (("grade_a", grade_a), ("grade_b", grade_b)):
            if grade and grade not in GRADES:
                raise InputError(f"{where}: {name} must be a whole number from 1 to 5")
        place = drawn[int(case) - 1]
        second = "A" if place["second_is_a"] else "B"
        better = None if not said else "equal" if said == "equal" else "second" if said == second else "first"
        grades = [int(grade) if grade else None for grade in (grade_a, grade_b)]
        found[int(case)] = (rater, place["id"], said or None, better, *(grades[::-1] if second == "A" else grades))
    return [
        found.get(number, (rater, place["id"], None, None, None, None)) for number, place in enumerate(drawn, start=1)
    ]


def _text(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
