"""The audit of a question set: how accurate are guessers that know no medicine?

A policy that is trained with reinforcement learning uses any shortcut to the answer before it learns medicine. The guessers in
this file see only the options; those in `record_guessers` also read the record. `excess` is the accuracy of a guesser minus
that of chance (one divided by the number of options of each question). Its 95 % interval is clustered by patient. A guesser that
finds several options equally good gets its expected accuracy.

A set passes if no guesser is significantly better than chance. The test is Student's t over patients. The probability that any
honest set fails is `FALSE_ALARM`, over all guessers and all sets that are judged together (Bonferroni). With the usual 2.5 %
for each set, one in twenty honest preparations failed, since figures of a small registry vary by several points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from shared.questions.intervals import CONFIDENCE
from shared.questions.record import LETTERS, Question
from shared.questions.record_guessers import read_records
from shared.registry.features import as_number

FALSE_ALARM = 0.01  # the probability that any of the sets that are judged together fails although it has no shortcut
BOOSTED_QUESTIONS = 5_000  # the guesser with boosted trees reads at most so many questions
FOLDS = 5  # of the cross-validation of boosted trees

Choice = Callable[[Question], list[int]]  # a guesser: the positions of the options that it finds equally good


def audit(questions: Sequence[Question], *, sets: int = 1) -> dict[str, Any]:
    """Audit a question set: `passed`, `chance`, `questions`, `judged_together`, and the figures of all `guessers` by name.

    Each guesser has `accuracy`, `excess`, the `interval` of the excess, and `passed`. A guesser that reads the record also has
    `solves`, the features that it can answer, and from which lines. `sets` is the number of sets that are judged together (see
    `FALSE_ALARM`).
    """
    if not questions:
        return {"questions": 0, "passed": True, "chance": None, "guessers": {}}
    chance = np.array([question.chance for question in questions])
    patients = np.unique([question.patient for question in questions], return_inverse=True)[1]
    credits = {name: np.array([_credit(q, choose(q)) for q in questions]) for name, choose in GUESSERS.items()}
    boosted, boosted_rows = _boosted(questions, patients)
    credit_of = {name: (credit, chance, patients) for name, credit in credits.items()}
    if boosted_rows is not None:
        credit_of["boosted trees on the options"] = (boosted, chance[boosted_rows], patients[boosted_rows])
    false_alarm = FALSE_ALARM / (
        2 * sets * len(credit_of)
    )  # half for these guessers, half for those that read the record
    guessers = {name: _figures(*parts, false_alarm) for name, parts in credit_of.items()}
    for name, credit, solves in read_records(questions, FALSE_ALARM / (2 * sets)):
        guessers[name] = _figures(credit, chance, patients, 0.0) | {"passed": not solves, "solves": solves}
    return {
        "questions": len(questions),
        "chance": float(chance.mean()),
        "passed": all(figures["passed"] for figures in guessers.values()),
        "judged_together": sets * len(credit_of),
        "guessers": guessers,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result of `audit` as lines for a terminal: all guessers that failed the set, or else the best guesser."""
    if not result["questions"]:
        return []
    ranked = sorted(result["guessers"].items(), key=lambda item: -item[1]["excess"])
    failed = [item for item in ranked if not item[1]["passed"]]
    shown = "; ".join(_line(name, figures) for name, figures in failed or ranked[:1])
    return [
        f"shortcuts      {f'FOUND: {shown}' if failed else f'none; the best guesser is {shown}'}",
        *_explanations(result, failed),
    ]


def _explanations(result: dict[str, Any], failed: Sequence[Any]) -> list[str]:
    """Lines that explain figures which are no shortcut: an interval above chance by luck, and what boosted trees reach."""
    explanations = []
    tries = result.get("judged_together")
    if tries and not failed and any(figures["interval"][0] > 0 for figures in result["guessers"].values()):
        explanations.append(
            f"               {tries} guessers are judged together, so that one of them is above chance by luck now and then"
        )
    ceiling = result.get("ceiling")
    if ceiling:
        explanations.append(
            f"from a table   boosted trees that read the records answer {ceiling['accuracy']:.3f} of {ceiling['questions']:,} "
            f"questions about {ceiling['features']} features rightly (chance {ceiling['chance']:.3f}); this is no shortcut"
        )
    return explanations


def _line(name: str, figures: dict[str, Any]) -> str:
    if figures.get("solves"):
        first = max(figures["solves"], key=lambda solved: solved["right"])
        more = len(figures["solves"]) - 1
        return (
            f"{name}: {' and '.join(first['from'])} answer {first['right']:,} of {first['of']:,} questions about "
            f"{first['feature']}" + (f", and {more} more features" if more else "")
        )
    low, high = figures["interval"]
    return f"{name} {figures['accuracy']:.3f} (95 % interval {low:+.3f} to {high:+.3f} over chance)"


def _figures(credit: np.ndarray, chance: np.ndarray, patients: np.ndarray, false_alarm: float) -> dict[str, Any]:
    """The figures of a guesser from its expected accuracy `credit`, `chance` and `patients` (codes from 0), all `[questions]`."""
    excess = credit - chance
    mean = float(excess.mean())
    by_patient = np.bincount(patients, weights=excess - mean)
    count = len(by_patient)
    error = float(np.sqrt((by_patient**2).sum() * count / max(count - 1, 1)) / len(excess))
    single = float(norm.ppf((1 + CONFIDENCE) / 2))
    # One patient alone decides nothing. If all patients have the same excess, only its sign is tested.
    bound = float(student.isf(false_alarm, count - 1)) if count > 1 and false_alarm else math.inf
    return {
        "accuracy": float(credit.mean()),
        "excess": mean,
        "interval": [mean - single * error, mean + single * error],
        "passed": bool(mean <= 0 or (mean <= bound * error if error or count < 2 else False)),
    }


def _credit(question: Question, choices: Sequence[int]) -> float:
    """Expected accuracy of a random choice among the options `taken`, or among all options if `taken` is empty."""
    if not choices:
        return question.chance
    return (LETTERS.index(question.answer) in choices) / len(choices)


def decimals(text: str) -> int:
    """The number of decimals with which a number is written; -1 for a text that is not a number."""
    return -1 if math.isnan(as_number(text)) else len(text.partition(".")[2])


def most_decimals(question: Question) -> list[int]:
    """The options written with the most decimals."""
    counts = [decimals(text) for text in question.choices]
    return [place for place, count in enumerate(counts) if count == max(counts)]


def out_of_order(question: Question) -> list[int]:
    """The options without which the others are in order, as texts or as numbers; empty if all are in order."""
    return sorted({*_odd(list(question.choices)), *_odd([as_number(text) for text in question.choices])})


def _odd(keys: list[Any]) -> list[int]:
    if len(keys) < 3 or any(key != key for key in keys) or keys == sorted(keys):
        return []
    return [place for place in range(len(keys)) if _is_sorted(keys[:place] + keys[place + 1 :])]


def _is_sorted(keys: list[Any]) -> bool:
    return all(first <= second for first, second in itertools.pairwise(keys))


def middle(question: Question) -> list[int]:
    """The option in the middle of the sorted numbers, or the two in the middle; empty if not all options are numbers."""
    numbers = [as_number(text) for text in question.choices]
    if any(math.isnan(number) for number in numbers):
        return []
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    half = len(order) // 2
    return order[half : half + 1] if len(order) % 2 else order[half - 1 : half + 1]


def longest(question: Question) -> list[int]:
    """The options with the longest text."""
    lengths = [len(text) for text in question.choices]
    return [place for place, length in enumerate(lengths) if length == max(lengths)]


def most_frequent(question: Question) -> list[int]:
    """The option that is most frequent in the training split."""
    return [LETTERS.index(question.majority)]


def _letter(place: int) -> Choice:
    return lambda question: [place] if place < len(question.choices) else []


GUESSERS: dict[str, Choice] = {
    "most decimals": most_decimals,
    "out of order": out_of_order,
    "middle of the ladder": middle,
    "most frequent value": most_frequent,
    "longest text": longest,
    **{f"always {letter}": _letter(place) for place, letter in enumerate(LETTERS)},
}


@threadpool_limits.wrap(limits=1)
def _boosted(questions: Sequence[Question], patients: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Expected accuracy of boosted trees that see only the features of options (`_looks`), by cross-validation over patients.

    Returns `[rows]`, and which questions these rows are; None for the latter if there are too few patients.
    """
    rows = np.arange(len(questions))[:BOOSTED_QUESTIONS]
    groups = patients[rows]
    if len(np.unique(groups)) < 2 * FOLDS:
        return np.zeros(0), None
    tables = [_looks(questions[row]) for row in rows]
    starts = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
    table = np.concatenate(tables)
    right = np.zeros(len(table), dtype=bool)
    right[starts[:-1] + [LETTERS.index(questions[row].answer) for row in rows]] = True
    owner = np.repeat(groups, np.diff(starts))
    scores = np.zeros(len(table))
    for train, test in GroupKFold(FOLDS).split(table, groups=owner):
        model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, random_state=0)
        scores[test] = model.fit(table[train], right[train]).predict_proba(table[test])[:, 1]
    credit = []
    for row, start, end in zip(rows, starts, starts[1:]):
        part = scores[start:end]
        credit.append(_credit(questions[row], np.flatnonzero(part == part.max()).tolist()))
    return np.array(credit), rows


def _looks(question: Question) -> np.ndarray:
    """What can be seen of the options without medical knowledge: `[options, 12]`.

    Number of options and position; length; decimals and final zeros; rank and spacing as a number; rank as a text; whether it is
    out of order; whether it is the most frequent value.
    """
    texts = list(question.choices)
    count = len(texts)
    numbers = np.array([as_number(text) for text in texts])
    known = not np.isnan(numbers).any()
    ranks = np.argsort(np.argsort(numbers)) if known else np.full(count, -1)
    spread = np.ptp(numbers) if known and np.ptp(numbers) > 0 else 1.0
    gaps = np.abs(numbers[:, None] - numbers) + np.where(np.eye(count) > 0, np.inf, 0.0)
    by_text = np.argsort(np.argsort(np.array(texts)))
    odd = out_of_order(question)
    return np.array(
        [
            [
                count,
                place,
                len(text),
                len(text) - np.mean([len(other) for other in texts]),
                decimals(text),
                len(text.replace(".", "")) - len(text.replace(".", "").rstrip("0")),
                ranks[place],
                (numbers[place] - numbers.min()) / spread if known else -1.0,
                gaps[place].min() / spread if known else -1.0,
                by_text[place],
                place in odd,
                LETTERS[place] == question.majority,
            ]
            for place, text in enumerate(texts)
        ],
        dtype=np.float64,
    )
