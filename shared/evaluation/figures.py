"""Figures of one policy's answers, what an accuracy can be compared with, and the change from before to after training.

Every interval resamples patients, never questions (shared/evaluation/intervals.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.evaluation.answers import COLUMNS, Answer
from shared.evaluation.intervals import accuracy_interval, interval_of
from shared.questions.record import LETTERS, Question
from shared.training.metrics_log import plain

if TYPE_CHECKING:
    from shared.config import RunConfig


def summarise(questions: Sequence[Question], answers: Sequence[Answer], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Figures of one policy on `questions`, ready for JSON; a figure that is not known is None.

    `accuracy` and its 95% interval `ci` (`accuracy_interval`), `n` questions, `patients`, `macro_f1` (`_macro_f1`), the shares
    `answered` (any letter), `format` (the letter of an option that was shown) and `truncated`, `mean_tokens`, and `readings`
    (see there). Two tables, `per_section` and `per_feature`: a row has a name, `n`, `accuracy`, `macro_f1`, and the accuracies
    of Bayes, majority and chance (`ceilings`); a section also has `ci`. `mean_tokens` and `truncated` count only the answers
    of which they are known.
    `bootstrap`: resamples of patients. Raises InputError unless there is one answer for each question.
    """
    table = _table(questions, answers)
    return plain(
        {
            **_figures(table),
            "ci": accuracy_interval(table["correct"], table["patient"], bootstrap, seed),
            "patients": table["patient"].nunique(),
            "mean_tokens": table["tokens"].astype(float).mean(),
            "answered": (table["predicted"] != "").mean(),
            "format": (table["answer_text"] != "").mean(),
            "truncated": table["truncated"].astype(float).mean(),
            "readings": readings(questions, answers, bootstrap=bootstrap, seed=seed),
            "per_section": _with_intervals(_by(table, "section"), table, "section", bootstrap, seed),
            "per_feature": _by(table, "feature"),
        }
    )


def readings(
    questions: Sequence[Question], answers: Sequence[Answer], *, bootstrap: int, seed: int
) -> dict[str, Any] | None:
    """Figures of the same completions by both readings of boxes; None where a letter is not known.

    `strict` and `lenient` each have `accuracy`, `ci` and `answered`. `differ` counts the questions in which their letters
    differ. Raises InputError unless there is one answer for each question.
    """
    table = _table(questions, answers)
    if table[["strict", "lenient"]].isna().any(axis=None):
        return None
    by_reading: dict[str, Any] = {"differ": int((table["strict"] != table["lenient"]).sum())}
    for name in ("strict", "lenient"):
        right = table[name] == table["letter"]
        by_reading[name] = {
            "accuracy": right.mean(),
            "ci": accuracy_interval(right, table["patient"], bootstrap, seed),
            "answered": (table[name] != "").mean(),
        }
    return plain(by_reading)


def details(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Any]:
    """Further figures of one policy, ready for JSON.

    `macro_accuracy`: the mean over features of their accuracies. `per_options`: a table by the number of options. `letters`
    and `right_letters`: the share of each letter among the answers ("" for none), and among the right answers. `endings`:
    the shares of answers that are `right`, that are `wrong`, and that have no readable letter. The last are `cut_off` by the
    length limit or `unreadable` though they ended by themselves; where that is not known both are `no_answer`.
    Raises InputError unless there is one answer for each question.
    """
    table = _table(questions, answers)
    table["options"] = [len(question.choices) for question in questions]
    return plain(
        {
            "macro_accuracy": table.groupby("feature")["correct"].mean().mean(),
            "per_options": _by(table, "options"),
            "letters": table["predicted"].value_counts(normalize=True).to_dict(),
            "right_letters": table["letter"].value_counts(normalize=True).to_dict(),
            "endings": _endings(table),
        }
    )


def gain(before: Sequence[Answer], after: Sequence[Answer], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Accuracy after less accuracy before, as `value`, and its 95% interval `ci` from a bootstrap of patients.

    The comparison is paired: a resample takes the same patients, and so the same questions, on both sides. Raises InputError
    unless both sides answer the same questions.
    """
    right_before = {answer.question_id: answer.correct for answer in before}
    table = pd.DataFrame([dataclasses.asdict(answer) for answer in after], columns=COLUMNS)
    if set(table["question_id"]) != set(right_before) or not len(table) == len(before) == len(right_before):
        raise InputError("the answers before and after are of different questions; evaluate both on the same file")
    change = table["correct"].astype(float) - table["question_id"].map(right_before).astype(float)
    return plain({"value": change.mean(), "ci": interval_of(change, table["patient"], bootstrap, seed)})


def ceilings(questions: Sequence[Question]) -> dict[str, float | None]:
    """What an accuracy on `questions` is compared with.

    `bayes_accuracy`: the mean posterior probability of the best option, the most that any reader of the records can
    expect (None where a question's is unknown); `majority_accuracy`: of always taking the option that is most frequent
    in training; `chance_accuracy`: of a uniform guess among the options shown.
    """
    return plain(_levels(_question_table(questions)))


def summary(
    run_name: str,
    questions: Sequence[Question],
    before: Sequence[Answer] | None,
    after: Sequence[Answer] | None,
    *,
    config: RunConfig,
    timings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What goes into `summary.json`: every figure of a run, ready for JSON.

    An evaluation that has not been made is None, and `gain` too. `timings` are those of `metrics_log.timings`; `environment`
    says what the run used (backend, versions, devices). A row of `per_section` and `per_feature` has the accuracies of both
    evaluations and what to compare them with (`ceilings`).
    """
    options = {"bootstrap": config.evaluation.bootstrap, "seed": config.seed}
    parts = {
        when: None if answers is None else summarise(questions, answers, **options)
        for when, answers in (("before", before), ("after", after))
    }
    tables = {name: _side_by_side(parts, name) for name in ("per_section", "per_feature")}
    parts = {when: part and {k: v for k, v in part.items() if k not in tables} for when, part in parts.items()}
    return plain(
        {
            "run_name": run_name,
            "seed": config.seed,
            "questions": len(questions),
            "patients": len({question.patient for question in questions}),
            **parts,
            "gain": None if before is None or after is None else gain(before, after, **options),
            **ceilings(questions),
            **tables,
            "timings": dict(timings or {}),
            "environment": dict(environment or {}),
            "config": dataclasses.asdict(config),
        }
    )


def _question_table(questions: Sequence[Question]) -> pd.DataFrame:
    """One row for each question. Raises InputError where there is none."""
    rows = [
        {
            "question_id": question.id,
            "patient": question.patient,
            "feature": question.feature,
            "section": question.section,
            "letter": question.answer,
            "truth": _text(question, question.answer),
            "bayes": np.nan if question.bayes_accuracy is None else question.bayes_accuracy,
            "majority": question.majority == question.answer,
            "chance": question.chance,
        }
        for question in questions
    ]
    if not rows:
        raise InputError("no questions to evaluate; the question file is empty")
    return pd.DataFrame(rows)


def _table(questions: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row for each question, with what was answered."""
    table = _question_table(questions)
    by_question = {answer.question_id: answer for answer in answers}
    if not len(by_question) == len(answers) == len(questions) or set(by_question) != set(table["question_id"]):
        raise InputError(
            f"{len(answers)} answers to {len(questions)} questions: there must be one for each, of the same file"
        )
    matched = [by_question[identifier] for identifier in table["question_id"]]
    for name in ("predicted", "correct", "truncated", "tokens", "strict", "lenient"):
        table[name] = [getattr(answer, name) for answer in matched]
    table["answer_text"] = [
        _text(question, answer.predicted) for question, answer in zip(questions, matched, strict=True)
    ]
    return table


def _text(question: Question, letter: str) -> str:
    """The option behind a letter; "" for no answer, or for a letter that has no option."""
    options = dict(zip(LETTERS, question.choices, strict=False))
    return options.get(letter, "")


def _levels(table: pd.DataFrame) -> dict[str, float]:
    """See `ceilings`."""
    return {
        "bayes_accuracy": table["bayes"].mean(skipna=False),
        "majority_accuracy": table["majority"].mean(),
        "chance_accuracy": table["chance"].mean(),
    }


def _figures(table: pd.DataFrame) -> dict[str, Any]:
    return {"n": len(table), "accuracy": table["correct"].mean(), "macro_f1": _macro_f1(table)}


def _macro_f1(table: pd.DataFrame) -> float:
    """Macro-F1 over answer texts within each feature, averaged over features.

    The classes of a feature are the texts that are the right answer of at least one of its questions; the letters say
    nothing, since options are shuffled. No answer counts as a miss of the right class.
    """
    scores = []
    for _, group in table.groupby("feature"):
        true = group["truth"].value_counts()
        predicted = group["answer_text"].value_counts().reindex(true.index, fill_value=0)
        hits = group["truth"][group["truth"] == group["answer_text"]].value_counts().reindex(true.index, fill_value=0)
        scores.append((2 * hits / (true + predicted)).mean())
    return float(np.mean(scores))


def _by(table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """A row of figures for each value of the column `name`, in order; a feature also has its section, and sections come first."""
    keys = ["section", "feature"] if name == "feature" else [name]
    return [
        {**dict(zip(keys, values, strict=True)), **_figures(group), **_levels(group)}
        for values, group in table.groupby(keys)
    ]


def _with_intervals(
    rows: list[dict[str, Any]], table: pd.DataFrame, name: str, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """The rows of `_by` with the interval of each accuracy."""
    groups = dict(tuple(table.groupby(name)))
    parts = [groups[row[name]] for row in rows]
    return [
        {**row, "ci": accuracy_interval(part["correct"], part["patient"], bootstrap, seed)}
        for row, part in zip(rows, parts, strict=True)
    ]


def _endings(table: pd.DataFrame) -> dict[str, float]:
    answered, correct = table["predicted"] != "", table["correct"].astype(bool)
    endings = {"right": correct, "wrong": answered & ~correct}
    if table["truncated"].isna().any():
        endings["no_answer"] = ~answered
    else:
        cut_off = table["truncated"].astype(bool)
        endings |= {"cut_off": ~answered & cut_off, "unreadable": ~answered & ~cut_off}
    return {name: float(rows.mean()) for name, rows in endings.items()}


def _side_by_side(parts: Mapping[str, dict[str, Any] | None], name: str) -> list[dict[str, Any]]:
    """The rows of both evaluations' table `name` as one; a missing evaluation's figures are None."""
    sides = {when: part[name] for when, part in parts.items() if part is not None}
    rows = []
    for position, first in enumerate(next(iter(sides.values()), [])):
        row = {key: value for key, value in first.items() if key not in ("accuracy", "macro_f1", "ci")}
        for when in parts:
            side = sides[when][position] if when in sides else {}
            row |= {when: side.get("accuracy"), f"macro_f1_{when}": side.get("macro_f1")}
            row |= {f"ci_{when}": side.get("ci")} if "ci" in first else {}
        rows.append(row)
    return rows
