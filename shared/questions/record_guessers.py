"""Guessers that answer from the record without medical knowledge: they subtract dates, compute, and search for the answer.

A clue is a pair of dates, a set of numbers, or one line of the record. For each feature, all clues are tested on patients that
they were not fitted on. A clue solves a feature if its accuracy covers at least the share `SOLVED` of the way from the best
blind guess to 100 %, and if this is not due to chance, given the number of clues that were tried. Medical knowledge is far less
exact. When questions are made, such clues should have been hidden.
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

READ_QUESTIONS = 5_000  # only the first so many questions are read
MOST_ROWS = 400  # questions of a feature that are used
LEAST_ROWS = 8  # with fewer questions nothing is decided
MOST_DATES = 30  # columns of dates that are paired; of more, those that most records have
SOLVED = 0.6
NEIGHBOURS = 3

Line = tuple[str, str]  # the section and the name of a line of a record
Record = dict[Line, str]


@dataclasses.dataclass(frozen=True)
class Clue:
    """A clue: the `names` of its lines, and `right` `[rows]`, 1 where its answer is right, 0 where wrong, NaN where unknown.

    A value between 0 and 1 is the probability that it is right, if several options are equally good.
    """

    names: tuple[str, ...]
    right: np.ndarray


@dataclasses.dataclass(frozen=True)
class Asked:
    """The questions about one feature, one for each patient. `places` are their positions in the question set."""

    feature: str
    places: list[int]
    questions: list[Question]
    records: list[Record]

    def numbers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The options as numbers `[rows, options]` (NaN after the last), and the right numbers `[rows]`; None for texts."""
        table = np.full((len(self.questions), len(LETTERS)), np.nan)
        for row, question in enumerate(self.questions):
            table[row, : len(question.choices)] = [as_number(text) for text in question.choices]
            if np.isnan(table[row, : len(question.choices)]).any():
                return None
        return table, table[np.arange(len(table)), self.answers()]

    def answers(self) -> np.ndarray:
        """The position of the right option: `[rows]`."""
        return np.array([LETTERS.index(question.answer) for question in self.questions])


def read_record(context: str) -> Record:
    """The lines `name: value` of a record: values by section and name, without masked values."""
    value_of: Record = {}
    section = ""
    for line in context.split("\n"):
        if line.startswith("[") and line.endswith("]"):
            section = line
            continue
        name, mark, value = line.partition(": ")
        if mark and value != MASK:
            value_of[section, name] = value
    return value_of


@threadpool_limits.wrap(limits=1)
def read_records(questions: Sequence[Question], false_alarm: float) -> Iterator[tuple[str, np.ndarray, list[Any]]]:
    """For each guesser: its name, its expected accuracy on each question `[questions]`, and the features that it solves.

    The accuracy is that of chance where the guesser knows nothing. Each feature is a dictionary: the `feature`, the lines `from`
    which it is answered, and how many questions are `right` `of` how many. `false_alarm` is the probability that any guesser
    reports a feature by chance.
    """
    by_feature = _by_feature(questions)
    chance = np.array([question.chance for question in questions])
    for name, clues_of in GUESSERS.items():
        clues_of_features = [(asked, clues_of(asked)) for asked in by_feature]
        tried = max(sum(len(clues) for _, clues in clues_of_features), 1)
        credit, solved = chance.copy(), []
        for asked, clues in clues_of_features:
            best = max(clues, key=lambda clue: np.nansum(clue.right), default=None)
            if best is not None and _solves(asked, best, false_alarm / (len(GUESSERS) * tried)):
                known = ~np.isnan(best.right)
                credit[np.array(asked.places)[known]] = best.right[known]
                right, of = int(np.nansum(best.right)), int(known.sum())
                solved.append({"feature": asked.feature, "from": list(best.names), "right": right, "of": of})
        yield name, credit, solved


def _by_feature(questions: Sequence[Question]) -> list[Asked]:
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for place, question in enumerate(questions[:READ_QUESTIONS]):
        places[question.feature].setdefault(question.patient, place)
    records: dict[str, Record] = {}
    features = []
    for feature, by_patient in places.items():
        chosen = list(by_patient.values())[:MOST_ROWS]
        if len(chosen) < LEAST_ROWS:
            continue
        first_questions = [questions[place] for place in chosen]
        for question in first_questions:
            if question.context not in records:
                records[question.context] = read_record(question.context)
        features.append(
            Asked(feature, chosen, first_questions, [records[question.context] for question in first_questions])
        )
    return features


def _solves(asked: Asked, clue: Clue, false_alarm: float) -> bool:
    """Whether a clue solves the questions about a feature, as the top of this file defines it."""
    known = ~np.isnan(clue.right)
    count, right = int(known.sum()), float(np.nansum(clue.right))
    if count < LEAST_ROWS:
        return False
    answered = [question for question, is_known in zip(asked.questions, known, strict=True) if is_known]
    frequent = sum(question.majority == question.answer for question in answered)
    common = Counter(question.choices[LETTERS.index(question.answer)] for question in answered).most_common(1)[0][1]
    blind = (
        max(sum(question.chance for question in answered), frequent, common if count > 2 * LEAST_ROWS else 0) / count
    )
    gained = (right / count - blind) / max(1 - blind, 1e-9)
    return bool(gained >= SOLVED and binom.sf(math.ceil(right) - 1, count, min(blind, 1.0)) < false_alarm)


def _title(line: Line) -> str:
    return f"'{line[1]}'" + (f" in {line[0]}" if line[0] else "")


def _columns(asked: Asked, read: Callable[[Sequence[str]], Sequence[float] | np.ndarray]) -> dict[Line, np.ndarray]:
    """The lines whose value `read` can read in at least `LEAST_ROWS` records: `[rows]`, NaN where it cannot."""
    texts: dict[Line, dict[int, str]] = defaultdict(dict)
    for row, record in enumerate(asked.records):
        for line, text in record.items():
            texts[line][row] = text
    columns: dict[Line, np.ndarray] = {}
    for line, by_row in texts.items():
        values = np.full(len(asked.records), np.nan)
        values[list(by_row)] = read(list(by_row.values()))
        if (~np.isnan(values)).sum() >= LEAST_ROWS:
            columns[line] = values
    return columns


def _numbers(texts: Sequence[str]) -> list[float]:
    return [as_number(text) for text in texts]


def dates_apart(asked: Asked) -> list[Clue]:
    """Clues from dates: each date alone, and the time between two dates, exactly and in calendar days."""
    dates = _columns(asked, days)
    frequent = sorted(dates, key=lambda line: -np.count_nonzero(~np.isnan(dates[line])))[:MOST_DATES]
    pairs = list(itertools.combinations([line for line in dates if line in frequent], 2))
    times: list[tuple[tuple[Line, ...], np.ndarray]] = [((line,), dates[line]) for line in dates]
    times += [(pair, dates[pair[1]] - dates[pair[0]]) for pair in pairs]
    times += [(pair, np.floor(dates[pair[1]]) - np.floor(dates[pair[0]])) for pair in pairs]
    return [Clue(tuple(map(_title, lines)), _judged(asked, values[:, None])) for lines, values in times]


def computed(asked: Asked) -> list[Clue]:
    """Clues from arithmetic: numbers or dates of the record from which the value can be computed.

    Two of them may give it as a sum, difference, product or ratio, more of them as a sum.
    """
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
    for formula in arithmetic(table, ["asked"]):
        inputs = table[[formula.first, formula.second]].to_numpy()
        names = tuple(_title(lines[int(name)]) for name in (formula.first, formula.second))
        clues.append(Clue(names, _judged(asked, inputs, logarithms=formula.logarithms)))
    for _, summands, _ in of_several(table, ["asked"]):
        names = tuple(_title(lines[int(name)]) for name in summands)
        clues.append(Clue(names, _judged(asked, table[list(summands)].to_numpy())))
    # Without a result, as many empty clues as pairs that were tried, since the number of clues decides what is due to chance.
    return clues or [Clue((), np.full(len(asked.questions), np.nan))] * (len(lines) * (len(lines) - 1) // 2)


def repeated(asked: Asked) -> list[Clue]:
    """Clues from repetition: lines whose value is one of the options, or contains one of them as words."""
    right_of_line: dict[Line, np.ndarray] = {}
    for row, (question, record) in enumerate(zip(asked.questions, asked.records, strict=True)):
        options = {_plain(text): place for place, text in enumerate(question.choices)}
        right = LETTERS.index(question.answer)
        for line, text in record.items():
            place = options.get(_plain(text))
            if place is None and " " in text:
                place = _said(text, question.choices)
            if place is not None:
                right_of_line.setdefault(line, np.full(len(asked.records), np.nan))[row] = float(place == right)
    return [Clue((_title(line),), values) for line, values in right_of_line.items()]


def _plain(text: str) -> str:
    number = as_number(text)
    return text.strip().lower() if math.isnan(number) else repr(number)


def _said(text: str, options: Sequence[str]) -> int | None:
    """The position of the only option that a text contains; None if it contains none, or several."""
    contained = [
        place
        for place, option in enumerate(options)
        if option in text and re.search(rf"(?<![\w.]){re.escape(option)}(?![\w]|\.\d)", text)
    ]
    return contained[0] if len(contained) == 1 else None


def _judged(asked: Asked, inputs: np.ndarray, *, logarithms: bool = False) -> np.ndarray:
    """How often the prediction from `inputs` `[rows, inputs]` is right: `[rows]`, 1 right, 0 wrong, NaN unknown.

    Each half of the patients is predicted from the other half. For a number, a linear fit (with `logarithms`, of logarithms) is
    made, and the option nearest to it is the prediction. For other features it is the option that the nearest neighbours have
    most often; equally frequent options share the credit.
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
            predicted = _nearest_options(*numbers, inputs, train, test, logarithms)
            right[test] = predicted == asked.answers()[test]
        else:
            right[test] = _credit_of_neighbours(asked, inputs, train, test)
    return right


def _nearest_options(
    options: np.ndarray, answers: np.ndarray, inputs: np.ndarray, train: np.ndarray, test: np.ndarray, logarithms: bool
) -> np.ndarray:
    """The position of the option nearest to a linear prediction, for the rows `test`: `[test]`."""
    transform = np.log if logarithms else np.asarray
    table, targets = transform(inputs), transform(answers)
    centre = table[train].mean(axis=0)
    design = np.column_stack([table[train] - centre, np.ones(len(train))])
    weights = np.linalg.lstsq(design, targets[train], rcond=None)[0]
    predicted = np.column_stack([table[test] - centre, np.ones(len(test))]) @ weights
    # Options of 0 or less have no logarithm, and are never the nearest.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nanargmin(np.abs(transform(options[test]) - predicted[:, None]), axis=1)


def _credit_of_neighbours(asked: Asked, inputs: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Expected accuracy of the options that the nearest neighbours have most often, for the rows `test`: `[test]`."""
    texts = [question.choices[LETTERS.index(question.answer)] for question in asked.questions]
    credit = np.zeros(len(test))
    for place, row in enumerate(test):
        near = train[np.argsort(np.abs(inputs[train] - inputs[row]).sum(axis=1), kind="stable")[:NEIGHBOURS]]
        votes = Counter(texts[other] for other in near)
        choices = asked.questions[row].choices
        most = max(votes[text] for text in choices)
        best = [text for text in choices if votes[text] == most]
        credit[place] = (texts[row] in best) / len(best) if most else asked.questions[row].chance
    return credit


GUESSERS: dict[str, Callable[[Asked], list[Clue]]] = {
    "time between dates": dates_apart,
    "arithmetic on the record": computed,
    "value repeated in the record": repeated,
}
