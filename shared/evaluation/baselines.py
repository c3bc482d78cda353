"""What a plain model of the registry's columns answers to the same questions: gradient-boosted trees.

For each feature that is asked for one model is fitted on the training patients, from the features that the questions
may show (what gives the answer away is left out), and chooses among the options. A language model that stays below it
has not used the record as well as a table would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from shared.errors import InputError
from shared.evaluation.answers import Answer, answer_to
from shared.questions.record import LETTERS, Question
from shared.questions.record_guessers import read_record
from shared.registry.features import Feature, as_number, numbers_of, value_text
from shared.registry.patients import pseudonym
from shared.registry.store import Registry
from shared.tasks.catalogue import line_of, task_of
from shared.tasks.denoising import shown_section

MAX_CATEGORIES = 200  # of a categorical input; rarer values count as missing
CEILING_FEATURES, CEILING_QUESTIONS = 8, 500  # a look beside the audit, within seconds
TREES = {"max_iter": 100, "random_state": 0}


def majority(questions: Sequence[Question]) -> list[Answer]:
    """Always the option that is most frequent in training."""
    return [answer_to(question, question.majority, truncated=False, tokens=0) for question in questions]


@threadpool_limits.wrap(limits=1)
def boosted_trees(
    registry: Registry,
    questions: Sequence[Question],
    *,
    mi_cutoff: float = 0.5,
    only_shown: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Answer]:
    """The trees' answer to each question about the registry's patients; probabilities where the options are categories.

    With `only_shown`, what a question's own record does not show is missing for the trees too (`causal`, few features).
    Raises InputError for questions about other patients, and for tasks that no table answers.
    """
    check_registry(registry, questions)
    table = pd.concat([registry.train, registry.valid])
    rows = _rows(registry)
    inputs = _inputs(registry.features, table, len(registry.train))
    answers: dict[str, Answer] = {}
    by_feature: dict[str, list[Question]] = {}
    for question in questions:
        by_feature.setdefault(question.feature, []).append(question)
    for name, asked in by_feature.items():
        feature = registry.feature(name)
        shown = [inputs[other] for other in task_of(asked[0]).columns(registry, name, mi_cutoff) if other in inputs]
        matrix = pd.concat(shown, axis=1) if shown else pd.DataFrame(index=range(len(table)))
        read = matrix.iloc[[rows[question.patient] for question in asked]]
        if only_shown:
            read = read.where(_in_record(registry, list(matrix.columns), asked))
        answers |= _answer(registry, feature, matrix, asked, read)
        if progress:
            progress(len(asked))
    return [answers[question.id] for question in questions]


def check_registry(registry: Registry, questions: Sequence[Question]) -> None:
    """Raise InputError unless the questions were made from this registry, and trees can answer them."""
    beyond = next((question.task for question in questions if not line_of(question).table_answers), None)
    if beyond is not None:
        raise InputError(
            f"--registry: no table answers the task {beyond!r}, so boosted trees cannot; leave --registry out"
        )
    rows = _rows(registry)
    if any(question.patient not in rows for question in questions):
        raise InputError("--registry: holds other patients than the questions; give the one that they were made from")
    names = {feature.name for feature in registry.features}
    unknown = sorted({question.feature for question in questions} - names)
    if unknown:
        raise InputError(
            f"--registry: has no feature {unknown[0]!r}, which the questions ask for; give the one that they were made from"
        )
    empty = next((q.feature for q in questions if not registry.train[q.feature].notna().any()), None)
    if empty is not None:
        raise InputError(f"--registry: no training patient has a value of {empty!r}, so that trees cannot learn it")


def _rows(registry: Registry) -> dict[str, int]:
    """The place of each patient, by pseudonym, in the training and held-out tables put together."""
    salt = str(registry.provenance.get("salt", ""))
    patients = [*registry.train.index, *registry.valid.index]
    return {pseudonym(salt, str(patient)): place for place, patient in enumerate(patients)}


def ceiling(registry: Registry, questions: Sequence[Question], *, mi_cutoff: float) -> dict[str, Any]:
    """What the trees score from what the records show, on the most asked features.

    `accuracy`, `chance` (of a uniform guess), and how many `questions` and `features` were judged. It is the fair ceiling of a
    table beside the audit's guessers. Empty where the trees do not know the task. A feature with the same value in all
    training patients who have it is left out; that may be where statistics describe held-out patients too.
    """
    counts = Counter(question.feature for question in questions)
    learnable = {feature.name for feature in registry.features if registry.train[feature.name].nunique() > 1}
    chosen = [name for name, _ in counts.most_common() if name in learnable][:CEILING_FEATURES]
    judged = [question for question in questions if question.feature in chosen][:CEILING_QUESTIONS]
    if not judged:
        return {}
    answers = boosted_trees(registry, judged, mi_cutoff=mi_cutoff, only_shown=True)
    right = [answer.predicted == question.answer for question, answer in zip(judged, answers, strict=True)]
    chance = sum(question.chance for question in judged) / len(judged)
    return {
        "accuracy": sum(right) / len(right),
        "chance": chance,
        "questions": len(judged),
        "features": len({question.feature for question in judged}),
    }


def _in_record(registry: Registry, columns: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
    """`[questions, columns]` bool: whether the question's record shows the column."""
    features = {feature.name: feature for feature in registry.features}
    lines = [(shown_section(features[name].section), features[name].display_name) for name in columns]
    return np.array([[line in record for line in lines] for record in (read_record(q.context) for q in questions)])


def _inputs(features: Sequence[Feature], table: pd.DataFrame, training: int) -> dict[str, pd.Series]:
    """Numbers as they are, categories as pandas categories of the training patients; dates and free text are left out."""
    inputs = {}
    for feature in features:
        column = table[feature.name]
        if feature.kind == "number":
            inputs[feature.name] = numbers_of(column).reset_index(drop=True).rename(feature.name)
        elif feature.kind == "category":
            categories = column.iloc[:training].value_counts().index[:MAX_CATEGORIES]
            values = pd.Categorical(column, categories=list(categories))
            inputs[feature.name] = pd.Series(values, name=feature.name)
    return inputs


def _answer(
    registry: Registry, feature: Feature, matrix: pd.DataFrame, asked: Sequence[Question], read: pd.DataFrame
) -> Mapping[str, Answer]:
    column = registry.train[feature.name]
    present = np.flatnonzero(column.notna())
    statistics = registry.statistics.get(feature.name)
    if statistics is not None and not statistics.finite:
        return _nearest(column, matrix, present, asked, read)
    texts = np.array([value_text(feature, value) for value in column.iloc[present]])
    fitted, read = _with_values(matrix, present, read)
    # Of a class with one patient nothing can be set aside to see when to stop.
    stop = "auto" if min(Counter(texts.tolist()).values()) > 1 else False
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", early_stopping=stop, **TREES)
    model.fit(fitted, texts)
    chances = model.predict_proba(read)
    classes = {text: place for place, text in enumerate(model.classes_)}
    answers = {}
    for question, row in zip(asked, chances, strict=True):
        shares = np.array([row[classes[text]] if text in classes else 0.0 for text in question.choices])
        shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(shares), 1 / len(shares))
        letter = LETTERS[int(np.argmax(shares))]
        answers[question.id] = answer_to(
            question, letter, truncated=False, tokens=0, probabilities=tuple(shares.tolist())
        )
    return answers


def _with_values(matrix: pd.DataFrame, rows: np.ndarray, read: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `matrix` to fit, and those to `read`, without columns that are empty in `rows`: scikit-learn cannot bin these.

    Where no column is left, one with equal values takes their place, so that the trees answer by frequency alone.
    """
    fitted = matrix.iloc[rows]
    names = [name for name in fitted.columns if fitted[name].notna().any()]
    if not names:
        return pd.DataFrame({"none": np.zeros(len(fitted))}), pd.DataFrame({"none": np.zeros(len(read))})
    return fitted[names], read[names]


def _nearest(
    column: pd.Series, matrix: pd.DataFrame, present: np.ndarray, asked: Sequence[Question], read: pd.DataFrame
) -> Mapping[str, Answer]:
    """The option nearest to the number that the trees predict."""
    numbers = numbers_of(column).to_numpy()
    with_number = present[~np.isnan(numbers[present])]
    fitted, read = _with_values(matrix, with_number, read)
    model = HistGradientBoostingRegressor(categorical_features="from_dtype", **TREES)
    model.fit(fitted, numbers[with_number])
    answers = {}
    for question, value in zip(asked, model.predict(read), strict=True):
        distances = [abs(as_number(text) - value) for text in question.choices]
        letter = LETTERS[int(np.nanargmin(distances))]
        answers[question.id] = answer_to(question, letter, truncated=False, tokens=0)
    return answers
