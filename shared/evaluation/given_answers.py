"""Answers made elsewhere: completions by question id, read from a file, so that they get the same figures as our own.

A line of JSON (`.jsonl`) or a row of Parquet is one completion:

    id             of the question
    completion     the text, whole
    truncated      optional: whether a length limit ended it
    tokens         optional: its length
    thinking       optional: whether its prompt ended inside the model's reasoning, as after `<think>`
    probabilities  optional: of the options shown, in their order; not where several completions vote

An optional field stands in all rows or in none. Other fields are not read. Neither jax nor torch is needed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.evaluation.answers import Answer, answer_to
from shared.evaluation.votes import Sample, answer_of
from shared.questions.record import Question

KINDS: dict[str, tuple[type, str]] = {
    "id": (str, "a text"),
    "completion": (str, "a text"),
    "truncated": (bool, "true or false"),
    "tokens": (int, "a whole number"),
    "thinking": (bool, "true or false"),
    "probabilities": (list, "a list of numbers, one for each option"),
}
NEEDED = ("id", "completion")
OPTIONAL = tuple(name for name in KINDS if name not in NEEDED)
SUM = 1e-3  # how far probabilities may be from a sum of 1: they may be written with few digits


class Given:
    """The completions of a file, by question, each checked. `repeated` counts the lines that repeat an earlier one."""

    def __init__(self, path: Path, questions: Sequence[Question], *, samples: int = 1, allow_missing: bool = False):
        """Read `path`: `samples` completions of each of `questions`; of some questions none, with `allow_missing`.

        Raises InputError with the number of the line that is wrong, never with its text.
        """
        self.path, self.samples, self.repeated = path, samples, 0
        self.sha256 = _sha256(path)
        self._completions: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # by id: where it stands, and the row
        by_id = {question.id: question for question in questions}
        first_row = ""
        optional_fields: set[str] = set()  # of the first row; all others must have the same
        for where, row in _rows(path):
            _check_row(f"{path}, {where}", row)
            if row["id"] not in by_id:
                raise InputError(f"{path}, {where}: its id is not one of the {len(by_id)} questions that are asked")
            fields = {name for name in OPTIONAL if row.get(name) is not None}
            if not first_row:
                first_row, optional_fields = where, fields
            if fields != optional_fields:
                name = min(fields ^ optional_fields)
                raise InputError(f"{path}, {where}: {name} stands here and not in {first_row}, or the other way round; give it "
                                 "in all or in none")  # fmt: skip
            _check_probabilities(f"{path}, {where}", row, by_id[row["id"]], samples)
            self._add(where, {name: row.get(name) for name in KINDS})
        self._check_counts(questions, allow_missing)
        self._with_probabilities = samples > 1 or "probabilities" in optional_fields
        self.missing = sum(question.id not in self._completions for question in questions)

    def answers(self, questions: Sequence[Question], rule: str) -> list[Answer]:
        """One answer to each question by `rule` (`shared.questions.boxes.RULES`); the letter "" where a completion is missing."""
        return [
            self._answer(question, [row for _, row in self._completions.get(question.id, [])], rule)
            for question in questions
        ]

    def described(self) -> dict[str, Any]:
        """What `summary.json` says of where the answers come from."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "completions": sum(map(len, self._completions.values())),
            "samples": self.samples,
            "missing": self.missing,
        }

    def _answer(self, question: Question, rows: Sequence[dict[str, Any]], rule: str) -> Answer:
        if not rows:
            count = len(question.choices)
            even = (1 / count,) * count if self._with_probabilities else ()
            return answer_to(question, "", truncated=None, tokens=None, probabilities=even, strict="", lenient="")
        samples = [
            Sample(
                completion=row["completion"],
                truncated=row["truncated"],
                tokens=row["tokens"],
                thinking=bool(row["thinking"]),
            )
            for row in rows
        ]
        return answer_of(question, samples, rule, probabilities=tuple(map(float, rows[0]["probabilities"] or ())))

    def _add(self, where: str, row: dict[str, Any]) -> None:
        rows = self._completions.setdefault(row["id"], [])
        if self.samples == 1 and rows:
            earlier_place, earlier_row = rows[0]
            if row != earlier_row:
                raise InputError(
                    f"{self.path}, {where}: answers the question of {earlier_place} again, and differs; leave one of them out, "
                    "or give --samples where several completions of a question are to vote"
                )
            self.repeated += 1
            return
        rows.append((where, row))

    def _check_counts(self, questions: Sequence[Question], allow_missing: bool) -> None:
        for rows in self._completions.values():
            if len(rows) != self.samples:
                raise InputError(
                    f"{self.path}, {rows[-1][0]}: the last of {len(rows)} completions of its question, and --samples says "
                    f"{self.samples} of each"
                )
        missing = [place for place, question in enumerate(questions, start=1) if question.id not in self._completions]
        if missing and not allow_missing:
            raise InputError(
                f"{self.path}: answers none of {len(missing)} of the {len(questions)} questions, the first of them number "
                f"{missing[0]}; give them, or --allow_missing to count them as unanswered"
            )


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row and where it stands: `line 3` of lines of JSON, `row 3` of Parquet."""
    if path.suffix == ".jsonl":
        yield from _lines(path)
        return
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})".replace("\n", " ")) from error
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise InputError(f"{path}: not a file of answers, these columns are missing: {', '.join(missing)}")
    table = table[[name for name in KINDS if name in table.columns]].astype(object)
    if "probabilities" in table.columns:
        table["probabilities"] = table["probabilities"].map(
            lambda shares: None if shares is None else np.asarray(shares).tolist()
        )
    table = table.where(table.notna(), None)
    for number, row in enumerate(table.to_dict("records"), start=1):
        yield f"row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield where, json.loads(text)
            except UnicodeDecodeError:
                raise InputError(f"{path}, {where}: not UTF-8") from None
            except (ValueError, RecursionError):
                raise InputError(f"{path}, {where}: not JSON; each line must be one JSON object") from None


def _check_row(where: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a JSON object with id and completion")
    for name in NEEDED:
        if row.get(name) is None:
            raise InputError(f"{where}: has no {name}")
    for name, (kind, what) in KINDS.items():
        value = row.get(name)
        if value is not None and type(value) is not kind:
            raise InputError(f"{where}: {name} must be {what}")
    if row.get("tokens") is not None and row["tokens"] < 0:
        raise InputError(f"{where}: tokens must be at least 0")


def _check_probabilities(where: str, row: dict[str, Any], question: Question, samples: int) -> None:
    probabilities = row.get("probabilities")
    if probabilities is None:
        return
    if samples > 1:
        raise InputError(
            f"{where}: probabilities cannot go with --samples, whose votes give them; leave one of the two out"
        )
    numbers = [share for share in probabilities if type(share) in (int, float) and math.isfinite(share) and share >= 0]
    if len(numbers) < len(probabilities) or len(probabilities) != len(question.choices) or abs(sum(numbers) - 1) > SUM:
        raise InputError(
            f"{where}: probabilities must be {len(question.choices)} numbers, one for each option in its order, that add up to 1"
        )


def _sha256(path: Path) -> str:
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: answers must be lines of JSON (.jsonl) or Parquet (.parquet)")
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of answers") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
