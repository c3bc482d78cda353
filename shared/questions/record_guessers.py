"""Guessers that read the record as a calculator would: they subtract dates, compute, and look for the answer itself.

Each feature's clues (two dates, two numbers, one line) are judged on patients that they were not fitted on. A clue solves a
feature where it closes `SOLVED` of the distance between the best blind guess and all right, more often than chance would
among all clues that were tried. What medicine tells stays far below that: such clues are hidden when questions are made.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom
from threadpoolctl import threadpool_limits

from shared.questions.record import LETTERS, MASK, Question
from shared.registry.dates import days
from shared.registry.features import as_number
from shared.registry.relations import arithmetic
from shared.registry.sums import of_several

READ_QUESTIONS = 5_000  # the first so many are read
MOST_ROWS = 400  # of a feature
LEAST_ROWS = 8
MOST_DATES = 30  # dates of a record; of more, those that most records have
SOLVED = 0.6
NEIGHBOURS = 3

Line = tuple[str, str]  # a line's section and name
Record = dict[Line, str]


@dataclasses.dataclass(frozen=True)
class Clue:
    """What a clue answers: `right` `[rows]` is whether, NaN where the record does not have it."""

    names: tuple[str, ...]
    right: np.ndarray


@dataclasses.dataclass(frozen=True)
class Asked:
    """The questions about one feature, one a patient: their places in the set, records, options and answers."""

    feature: str
    places: list[int]
    questions: list[Question]
    records: list[Record]

    def numbers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`[rows, options]` options as numbers, NaN beyond the last, and `[rows]` answers; None where they are texts."""
        table = np.full((len(self.questions), len(LETTERS)), np.nan)
        for row, question in enumerate(self.questions):
            table[row, : len(question.choices)] = [as_number(text) for text in question.choices]
            if np.isnan(table[row, : len(question.choices)]).any():
                return None
        return table, table[np.arange(len(table)), self.answers()]

    def answers(self) -> np.ndarray:
        """`[rows]` places of the right options."""
        return np.array([LETTERS.index(question.answer) for question in self.questions])


def read_record(context: str) -> Record:
    """The lines `name: value` of a record, by section and name; what is masked is left out."""
    found: Record = {}
    section = ""
    for line in context.split("\n"):
        if line.startswith("[") and line.endswith("]"):
            section = line
            continue
        name, mark, value = line.partition(": ")
        if mark and value != MASK:
            found[section, name] = value
    return found


@threadpool_limits.wrap(limits=1)
def read_records(questions: Sequence[Question], false_alarm: float) -> Iterator[tuple[str, np.ndarray, list[Any]]]:
    """Of each guesser its name, its credit `[questions]` (chance where it knows nothing), and what it solves.

    An entry of the last: the `feature`, the lines it is answered `from`, and how many are `right` `of` how many.
    """
    asked = _by_feature(questions)
    chance = np.array([question.chance for question in questions])
    for name, clues_of in GUESSERS.items():
        found = [(each, clues_of(each)) for each in asked]
        tried = max(sum(len(clues) for _, clues in found), 1)
        credit, solves = chance.copy(), []
        for each, clues in found:
            best = max(clues, key=lambda clue: np.nansum(clue.right), default=None)
            if best is not None and _solves(each, best, false_alarm / (len(GUESSERS) * tried)):
                known = ~np.isnan(best.right)
                credit[np.array(each.places)[known]] = best.right[known]
                right, of = int(np.nansum(best.right)), int(known.sum())
                solves.append({"feature": each.feature, "from": list(best.names), "right": right, "of": of})
        yield name, credit, solves


def _by_feature(questions: Sequence[Question]) -> list[Asked]:
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for place, question in enumerate(questions[:READ_QUESTIONS]):
        places[question.feature].setdefault(question.patient, place)
    records: dict[str, Record] = {}
    found = []
    for feature, by_patient in places.items():
        chosen = list(by_patient.values())[:MOST_ROWS]
        if len(chosen) < LEAST_ROWS:
            continue
        members = [questions[place] for place in chosen]
        for question in members:
            if question.context not in records:
                records[question.context] = read_record(question.context)
        found.append(Asked(feature, chosen, members, [records[question.context] for question in members]))
    return found


def _solves(asked: Asked, clue: Clue, false_alarm: float) -> bool:
    known = ~np.isnan(clue.right)
    count, right = int(known.sum()), float(np.nansum(clue.right))
    if count < LEAST_ROWS:
        return False
    members = [question for question, kept in zip(asked.questions, known, strict=True) if kept]
    frequent = sum(question.majority == question.answer for question in members)
    common = Counter(question.choices[LETTERS.index(question.answer)] for question in members).most_common(1)[0][1]
    blind = max(sum(question.chance for question in members), frequent, common if count > 2 * LEAST_ROWS else 0) / count
    gained = (right / count - blind) / max(1 - blind, 1e-9)
    return bool(gained >= SOLVED and binom.sf(math.ceil(right) - 1, count, min(blind, 1.0)) < false_alarm)


def _title(line: Line) -> str:
    return f"'{line[1]}'" + (f" in {line[0]}" if line[0] else "")


def _columns(asked: Asked, read: Callable[[Sequence[str]], Sequence[float] | np.ndarray]) -> dict[Line, np.ndarray]:
    """The lines that at least `LEAST_ROWS` records have as what `read` understands: `[rows]`, NaN where it does not."""
    texts: dict[Line, dict[int, str]] = defaultdict(dict)
    for row, record in enumerate(asked.records):
        for line, text in record.items():
            texts[line][row] = text
    found: dict[Line, np.ndarray] = {}
    for line, by_row in texts.items():
        values = np.full(len(asked.records), np.nan)
        values[list(by_row)] = read(list(by_row.values()))
        if (~np.isnan(values)).sum() >= LEAST_ROWS:
            found[line] = values
    return found


def _numbers(texts: Sequence[str]) -> list[float]:
    return [as_number(text) for text in texts]


def dates_apart(asked: Asked) -> list[Clue]:
    """The time between two dates of the record, to the second and by calendar days; also a single date's distance."""
    dates = _columns(asked, days)
    kept = sorted(dates, key=lambda line: -np.count_nonzero(~np.isnan(dates[line])))[:MOST_DATES]
    pairs = [(first, second) for first, second in itertools.combinations([line for line in dates if line in kept], 2)]
    times: list[tuple[tuple[Line, ...], np.ndarray]] = [((line,), dates[line]) for line in dates]
    times += [(pair, dates[pair[1]] - dates[pair[0]]) for pair in pairs]
    times += [(pair, np.floor(dates[pair[1]]) - np.floor(dates[pair[0]])) for pair in pairs]
    return [Clue(tuple(map(_title, lines)), _judged(asked, values[:, None])) for lines, values in times]


def computed(asked: Asked) -> list[Clue]:
    """Two numbers (or dates) of the record whose sum, difference, product or ratio is the value asked for, or a sum of more."""
    numbers = asked.numbers()
    if numbers is None:
        return []
    columns = {**_columns(asked, _numbers), **_columns(asked, days)}
    if len(columns) < 2:
        return []
    table = pd.DataFrame({str(place): values for place, values in enumerate(columns.values())})
    table["asked"] = numbers[1]
    lines = list(columns)
    clues = []
    for each in arithmetic(table, ["asked"]):
        inputs = table[[each.first, each.second]].to_numpy()
        names = tuple(_title(lines[int(name)]) for name in (each.first, each.second))
        clues.append(Clue(names, _judged(asked, inputs, logarithms=each.logarithms)))
    for _, several, _ in of_several(table, ["asked"]):
        names = tuple(_title(lines[int(name)]) for name in several)
        clues.append(Clue(names, _judged(asked, table[list(several)].to_numpy())))
    return clues or [Clue((), np.full(len(asked.questions), np.nan))] * (len(lines) * (len(lines) - 1) // 2)


def repeated(asked: Asked) -> list[Clue]:
    """A line of the record that says one of the options, as its whole value or as words of a longer text."""
    found: dict[Line, np.ndarray] = {}
    for row, (question, record) in enumerate(zip(asked.questions, asked.records, strict=True)):
        options = {_plain(text): place for place, text in enumerate(question.choices)}
        right = LETTERS.index(question.answer)
        for line, text in record.items():
            place = options.get(_plain(text))
            if place is None and " " in text:
                place = _said(text, question.choices)
            if place is not None:
                found.setdefault(line, np.full(len(asked.records), np.nan))[row] = float(place == right)
    return [Clue((_title(line),), values) for line, values in found.items()]


def _plain(text: str) -> str:
    number = as_number(text)
    return text.strip().lower() if math.isnan(number) else repr(number)


def _said(text: str, options: Sequence[str]) -> int | None:
    """The only option whose words a text says."""
    said = [
        place
        for place, option in enumerate(options)
        if option in text and re.search(rf"(?<![\w.]){re.escape(option)}(?![\w]|\.\d)", text)
    ]
    return said[0] if len(said) == 1 else None


def _judged(asked: Asked, inputs: np.ndarray, *, logarithms: bool = False) -> np.ndarray:
    """`[rows]` 1 where the answer predicted from `inputs` `[rows, inputs]` is right, 0 where wrong, NaN where unknown.

    Half of the patients are fitted on the other half. Numbers: a linear fit (of logarithms), then the nearest option; else
    the option that the nearest neighbours have most often.
    """
    right = np.full(len(asked.questions), np.nan)
    known = ~np.isnan(inputs).any(axis=1)
    fold = np.arange(len(known)) % 2
    numbers = asked.numbers()
    for half in (0, 1):
        train, test = np.flatnonzero(known & (fold != half)), np.flatnonzero(known & (fold == half))
        if len(train) < LEAST_ROWS // 2 or not len(test):
            continue
        if numbers is not None:
            taken = _nearest_options(*numbers, inputs, train, test, logarithms)
            right[test] = taken == asked.answers()[test]
        else:
            right[test] = _as_neighbours(asked, inputs, train, test)
    return right


def _nearest_options(
    options: np.ndarray, answers: np.ndarray, inputs: np.ndarray, train: np.ndarray, test: np.ndarray, logarithms: bool
) -> np.ndarray:
    change = np.log if logarithms else np.asarray
    table, wanted = change(inputs), change(answers)
    centre = table[train].mean(axis=0)
    weights = np.linalg.lstsq(np.column_stack([table[train] - centre, np.ones(len(train))]), wanted[train], rcond=None)[
        0
    ]
    predicted = np.column_stack([table[test] - centre, np.ones(len(test))]) @ weights
    with np.errstate(divide="ignore", invalid="ignore"):  # an option of 0 or below has no logarithm and is far from all
        return np.nanargmin(np.abs(change(options[test]) - predicted[:, None]), axis=1)


def _as_neighbours(asked: Asked, inputs: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    texts = [question.choices[LETTERS.index(question.answer)] for question in asked.questions]
    found = np.zeros(len(test))
    for place, row in enumerate(test):
        near = train[np.argsort(np.abs(inputs[train] - inputs[row]).sum(axis=1), kind="stable")[:NEIGHBOURS]]
        votes = Counter(texts[other] for other in near)
        choices = asked.questions[row].choices
        most = max(votes[text] for text in choices)
        best = [text for text in choices if votes[text] == most]
        found[place] = (texts[row] in best) / len(best) if most else asked.questions[row].chance
    return found


GUESSERS: dict[str, Callable[[Asked], list[Clue]]] = {
    "time between dates": dates_apart,
    "arithmetic on the record": computed,
    "value repeated in the record": repeated,
}
