"""Accuracy before and after training: who answered what, how sure the figure is, and what it can be compared with.

Questions of one patient share a record and so are not independent: every interval resamples patients, never questions (or
counts them, where all answers are right or all wrong).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from shared.config import RunConfig
from shared.errors import InputError
from shared.questions.intervals import CONFIDENCE
from shared.questions.record import LETTERS, Question
from shared.randomness import generator
from shared.storage import files
from shared.training.metrics_log import plain

RESAMPLES_AT_ONCE = 128  # bounds the memory of the bootstrap: this many rows, an integer for each patient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a policy answered to one question. `predicted` is a letter, "" where the completion holds none.

    `truncated`: the length limit ended the completion, which is `tokens` long; both are None where that is not known, as it may
    be of answers made elsewhere. `probabilities` are those of the options, in order: the model's own, or shares of votes; empty
    where there is one greedy answer. `strict` and `lenient` are the letters by the two readings of boxes
    (`shared.questions.boxes`), one of which is `predicted`; None where the letter comes from elsewhere, or the file is of an
    earlier version.
    """

    question_id: str
    patient: str
    feature: str
    section: str
    predicted: str
    correct: bool
    truncated: bool | None
    tokens: int | None
    probabilities: tuple[float, ...] = ()
    strict: str | None = None
    lenient: str | None = None


COLUMNS = [field.name for field in dataclasses.fields(Answer)]
KINDS = {"correct": "bool", "truncated": "boolean", "tokens": "Int64", "probabilities": "object"}
OPTIONAL = {"probabilities", "strict", "lenient"}  # not in files of earlier versions


def answer_to(
    question: Question,
    predicted: str,
    *,
    truncated: bool | None,
    tokens: int | None,
    probabilities: tuple[float, ...] = (),
    strict: str | None = None,
    lenient: str | None = None,
) -> Answer:
    """The record for `question` answered with the letter `predicted` ("": no answer found)."""
    return Answer(
        question_id=question.id,
        patient=question.patient,
        feature=question.feature,
        section=question.section,
        predicted=predicted,
        correct=predicted == question.answer,
        truncated=truncated,
        tokens=tokens,
        probabilities=probabilities,
        strict=strict,
        lenient=lenient,
    )


def read_by(rule: str, question: Question, answer: Answer) -> Answer:
    """The same answer with the letter of another of `shared.questions.boxes.RULES`; as it is where that letter is not known."""
    letter = answer.strict if rule == "strict_first" else answer.lenient
    if letter is None:
        return answer
    return dataclasses.replace(answer, predicted=letter, correct=letter == question.answer)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as Parquet, readable by its owner only; replaces `path` atomically."""
    table = pd.DataFrame([dataclasses.asdict(answer) for answer in answers], columns=COLUMNS)
    table["probabilities"] = table["probabilities"].map(list)
    table = table.astype({name: KINDS.get(name, "string") for name in COLUMNS})
    with files.replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote. Raises InputError if the file is missing or is not such a file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of answers; write one with `creason evaluate`")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})".replace("\n", " ")) from error
    missing = [name for name in COLUMNS if name not in table.columns and name not in OPTIONAL]
    if missing:
        raise InputError(f"{path}: not a file of answers, these columns are missing: {', '.join(missing)}")
    if "probabilities" not in table.columns:
        table["probabilities"] = [()] * len(table)
    table["probabilities"] = table["probabilities"].map(lambda shares: tuple(map(float, shares)))
    table = table.reindex(columns=COLUMNS).astype(object)
    table = table.where(table.notna(), None)
    columns = {name: table[name].tolist() for name in COLUMNS}
    return [Answer(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def summarise(questions: Sequence[Question], answers: Sequence[Answer], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Figures of one policy on `questions`, ready for JSON (unknown: None).

    `accuracy` with `ci` (95%, see `accuracy_interval`; None for a single patient), `n` questions, `patients`, `macro_f1`,
    the shares `answered` (any letter), `format` (the letter of an option that was shown) and `truncated`, `mean_tokens`,
    `readings` (see there), and the tables `per_section` and `per_feature` (rows of name, n, accuracy, macro_f1, bayes, majority
    and chance accuracy; sections with `ci`). `mean_tokens` and `truncated` are of the answers of which they are known, None
    where they are of none.
    Raises InputError where the answers are not one for each question.
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
    """What the two readings of boxes make of the same completions.

    Of `strict` and `lenient` each `accuracy`, `ci` and `answered`; `differ`: in how many questions their letters differ. None
    where a letter is not known.

    Raises InputError where the answers are not one for each question.
    """
    table = _table(questions, answers)
    if table[["strict", "lenient"]].isna().any(axis=None):
        return None
    found: dict[str, Any] = {"differ": int((table["strict"] != table["lenient"]).sum())}
    for name in ("strict", "lenient"):
        right = table[name] == table["letter"]
        found[name] = {
            "accuracy": right.mean(),
            "ci": accuracy_interval(right, table["patient"], bootstrap, seed),
            "answered": (table[name] != "").mean(),
        }
    return plain(found)


def details(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Any]:
    """Further figures of one policy, ready for JSON: `macro_accuracy` (each feature counts once), the table `per_options`
    (by number of options), the share of each letter among the answers (`letters`, "" for none) and the right ones, and
    `endings`, shares of the answers that are `right`, `wrong`, or have no readable letter: `cut_off`, or `unreadable` though they
    ended by themselves; both together are `no_answer` where that is not known."""
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
    """`value`: accuracy after minus before, with its 95% `ci` from a bootstrap of patients.

    Paired: a resample takes the same patients, so the same questions, on both sides. Raises InputError where the two
    sides do not answer the same questions.
    """
    right_before = {answer.question_id: answer.correct for answer in before}
    table = pd.DataFrame([dataclasses.asdict(answer) for answer in after], columns=COLUMNS)
    if set(table["question_id"]) != set(right_before) or not len(table) == len(before) == len(right_before):
        raise InputError("the answers before and after are of different questions; evaluate both on the same file")
    change = table["correct"].astype(float) - table["question_id"].map(right_before).astype(float)
    return plain({"value": change.mean(), "ci": interval_of(change, table["patient"], bootstrap, seed)})


def ceilings(questions: Sequence[Question]) -> dict[str, float | None]:
    """What an accuracy on `questions` is to be held against.

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

    An evaluation that has not been made is None, and with it `gain`. `timings` as `metrics.timings` gives them;
    `environment` says what it ran on (backend, versions, devices) and is copied. `per_section` and `per_feature` have
    one row each, with both accuracies and the levels to hold them against.
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
    given = {answer.question_id: answer for answer in answers}
    if not len(given) == len(answers) == len(questions) or set(given) != set(table["question_id"]):
        raise InputError(
            f"{len(answers)} answers to {len(questions)} questions: there must be one for each, of the same file"
        )
    matched = [given[identifier] for identifier in table["question_id"]]
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
        given = group["answer_text"].value_counts().reindex(true.index, fill_value=0)
        hits = group["truth"][group["truth"] == group["answer_text"]].value_counts().reindex(true.index, fill_value=0)
        scores.append((2 * hits / (true + given)).mean())
    return float(np.mean(scores))


def _by(table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """A row for each value of `name`, in order; features with their section, by section."""
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
    found = {"right": correct, "wrong": answered & ~correct}
    if table["truncated"].isna().any():
        found["no_answer"] = ~answered
    else:
        cut_off = table["truncated"].astype(bool)
        found |= {"cut_off": ~answered & cut_off, "unreadable": ~answered & ~cut_off}
    return {name: float(rows.mean()) for name, rows in found.items()}


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


def accuracy_interval(correct: pd.Series, patients: pd.Series, bootstrap: int, seed: int) -> list[float] | None:
    """95% interval of an accuracy: `interval_of`, but Wilson's where all are right or all are wrong; None for one patient.

    There every resample says the same and the bootstrap's interval has no width. Wilson's counts patients, not questions: how
    far the questions of one patient go together cannot be seen then. Source: Wilson, JASA 1927; by SciPy.
    """
    count = patients.nunique()
    if count > 1 and correct.nunique() == 1:
        found = binomtest(count if correct.iloc[0] else 0, count).proportion_ci(CONFIDENCE, method="wilson")
        return [float(found.low), float(found.high)]
    return interval_of(correct, patients, bootstrap, seed)


def interval_of(values: pd.Series, patients: pd.Series, bootstrap: int, seed: int) -> list[float] | None:
    """95% percentile interval of the mean of `values`, patients resampled; None for a single patient.

    Equal seeds give equal resamples, so the intervals of two policies on the same questions move together.
    """
    by_patient = values.astype(float).groupby(patients.to_numpy())
    sums = np.stack([by_patient.sum(), by_patient.count()], axis=1)  # [patients, (sum, questions)]
    if len(sums) < 2:
        return None
    random = generator(seed, "bootstrap")
    blocks = []
    for start in range(0, bootstrap, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, bootstrap - start), len(sums))
        blocks.append(sums[random.integers(len(sums), size=size)].sum(axis=1))
    resampled = np.concatenate(blocks)  # [bootstrap, (sum, questions)]
    tail = (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.quantile(resampled[:, 0] / resampled[:, 1], [tail, 1 - tail])]
