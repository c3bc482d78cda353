"""What a guesser scores who does not know medicine: the audit of a question set.

A policy trained by reinforcement finds whatever gives the answer away before it learns medicine. The guessers here see the
options only; those of `record_guessers` also read the record, as a calculator would. `excess` is the accuracy less chance
(one over the number of options, question by question) with a 95 % interval in which patients, not questions, are the
observations; a guesser that cannot choose among some options is given its expected accuracy.

A set passes if no guesser's excess is so far above 0 that it comes by chance less often than `FALSE_ALARM`, for all guessers
and all sets that are judged together (Bonferroni, Student's t with one degree of freedom less than there are patients). With
the usual 2.5 % for each set, one in twenty honest preparations failed: a small registry's figures scatter by points.
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

FALSE_ALARM = 0.01  # how often sets without any shortcut fail, all that are judged together
BOOSTED_QUESTIONS = 5_000  # the boosted guesser reads at most so many
FOLDS = 5

Choice = Callable[[Question], list[int]]  # the options that a guesser would take, one as good as the other


def audit(questions: Sequence[Question], *, sets: int = 1) -> dict[str, Any]:
    """`passed`, `chance`, `questions`, `judged_together`, and for each guesser `accuracy`, `excess`, its `interval`, `passed`.

    `sets`: how many sets are judged together, among which a false alarm is as rare as `FALSE_ALARM`. A guesser that reads
    the record also names in `solves` the features that it answers, and from what.
    """
    if not questions:
        return {"questions": 0, "passed": True, "chance": None, "guessers": {}}
    chance = np.array([question.chance for question in questions])
    patients = np.unique([question.patient for question in questions], return_inverse=True)[1]
    credits = {name: np.array([_credit(q, choose(q)) for q in questions]) for name, choose in GUESSERS.items()}
    boosted, rows = _boosted(questions, patients)
    found = {name: (credit, chance, patients) for name, credit in credits.items()}
    if rows is not None:
        found["boosted trees on the options"] = (boosted, chance[rows], patients[rows])
    guessers = {name: _figures(*parts, FALSE_ALARM / (2 * sets * len(found))) for name, parts in found.items()}
    for name, credit, solves in read_records(questions, FALSE_ALARM / (2 * sets)):
        guessers[name] = _figures(credit, chance, patients, 0.0) | {"passed": not solves, "solves": solves}
    return {
        "questions": len(questions),
        "chance": float(chance.mean()),
        "passed": all(figures["passed"] for figures in guessers.values()),
        "judged_together": sets * len(found),
        "guessers": guessers,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The audit for a terminal: the guessers that beat chance, else the best of them."""
    if not found["questions"]:
        return []
    ranked = sorted(found["guessers"].items(), key=lambda item: -item[1]["excess"])
    failed = [item for item in ranked if not item[1]["passed"]]
    shown = "; ".join(_line(name, figures) for name, figures in failed or ranked[:1])
    return [
        f"shortcuts      {f'FOUND: {shown}' if failed else f'none; the best guesser is {shown}'}",
        *_by_luck(found, failed),
    ]


def _by_luck(found: dict[str, Any], failed: Sequence[Any]) -> list[str]:
    """Why a guesser whose own interval lies above chance is no shortcut; and what a table reaches."""
    told = []
    tries = found.get("judged_together")
    if tries and not failed and any(figures["interval"][0] > 0 for figures in found["guessers"].values()):
        told.append(
            f"               {tries} guessers are judged together, so that one of them is above chance by luck now and then"
        )
    ceiling = found.get("ceiling")
    if ceiling:
        told.append(
            f"from a table   boosted trees that read the records answer {ceiling['accuracy']:.3f} of {ceiling['questions']:,} "
            f"questions about {ceiling['features']} features rightly (chance {ceiling['chance']:.3f}); this is no shortcut"
        )
    return told


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
    excess = credit - chance
    mean = float(excess.mean())
    by_patient = np.bincount(patients, weights=excess - mean)
    count = len(by_patient)
    error = float(np.sqrt((by_patient**2).sum() * count / max(count - 1, 1)) / len(excess))
    single = float(norm.ppf((1 + CONFIDENCE) / 2))
    # One patient alone shows nothing, and figures without any scatter are judged by their sign.
    bound = float(student.isf(false_alarm, count - 1)) if count > 1 and false_alarm else math.inf
    return {
        "accuracy": float(credit.mean()),
        "excess": mean,
        "interval": [mean - single * error, mean + single * error],
        "passed": bool(mean <= 0 or (mean <= bound * error if error or count < 2 else False)),
    }


def _credit(question: Question, taken: Sequence[int]) -> float:
    """Expected accuracy of a guesser that takes any of `taken`, or any option where there is none."""
    if not taken:
        return question.chance
    return (LETTERS.index(question.answer) in taken) / len(taken)


def decimals(text: str) -> int:
    """How many decimals a number is written with; -1 for other texts."""
    return -1 if math.isnan(as_number(text)) else len(text.partition(".")[2])


def most_decimals(question: Question) -> list[int]:
    """The options written with the most decimals."""
    counts = [decimals(text) for text in question.choices]
    return [place for place, count in enumerate(counts) if count == max(counts)]


def out_of_order(question: Question) -> list[int]:
    """The options without which the others are sorted, as texts or as numbers."""
    return sorted({*_odd(list(question.choices)), *_odd([as_number(text) for text in question.choices])})


def _odd(keys: list[Any]) -> list[int]:
    if len(keys) < 3 or any(key != key for key in keys) or keys == sorted(keys):
        return []
    return [place for place in range(len(keys)) if _is_sorted(keys[:place] + keys[place + 1 :])]


def _is_sorted(keys: list[Any]) -> bool:
    return all(first <= second for first, second in itertools.pairwise(keys))


def middle(question: Question) -> list[int]:
    """The middle number, or the two of them."""
    numbers = [as_number(text) for text in question.choices]
    if any(math.isnan(number) for number in numbers):
        return []
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    half = len(order) // 2
    return order[half : half + 1] if len(order) % 2 else order[half - 1 : half + 1]


def longest(question: Question) -> list[int]:
    """The longest texts."""
    lengths = [len(text) for text in question.choices]
    return [place for place, length in enumerate(lengths) if length == max(lengths)]


def most_frequent(question: Question) -> list[int]:
    """The value that training makes most frequent."""
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
    """Credit of boosted trees that score each option by its looks, judged on patients they were not fitted on."""
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
    """`[options, looks]`: place, length, decimals, roundness, rank and spacing as a number, rank as a text, frequency."""
    texts = list(question.choices)
    count = len(texts)
    numbers = np.array([as_number(text) for text in texts])
    known = not np.isnan(numbers).any()
    ranks = np.argsort(np.argsort(numbers)) if known else np.full(count, -1)
    spread = np.ptp(numbers) if known and np.ptp(numbers) > 0 else 1.0
    gaps = np.abs(numbers[:, None] - numbers) + np.where(np.eye(count) > 0, np.inf, 0.0)
    by_text = np.argsort(np.argsort(np.array(texts)))
    taken = out_of_order(question)
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
                place in taken,
                LETTERS[place] == question.majority,
            ]
            for place, text in enumerate(texts)
        ],
        dtype=np.float64,
    )
