"""How well probabilities of a yes or no are ranked and calibrated: AUROC, AUPRC, Brier score, ECE, reliability.

Accuracy hides prevalence: always saying no is right for nine patients of ten where one of ten has the event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from shared.errors import InputError
from shared.questions.intervals import CONFIDENCE
from shared.questions.record import LETTERS, Question
from shared.randomness import generator

BINS = 10
YES, NO = "yes", "no"


def positive_option(question: Question) -> int | None:
    """The place of the option `yes`, in capitals or not, where the options are yes and no; None in any other question."""
    texts = [text.strip().casefold() for text in question.choices]
    return texts.index(YES) if sorted(texts) == [NO, YES] else None


def labels_and_scores(
    questions: Sequence[Question], probabilities: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Whether the answer is yes `[questions]`, the probability of yes `[questions]`, and the patients.

    None unless every question has the options yes and no. `probabilities`: of each question's options, in order. Raises
    InputError where one is not a number.
    """
    places = [positive_option(question) for question in questions]
    if not questions or any(place is None for place in places) or any(len(pair) != 2 for pair in probabilities):
        return None
    unknown = sum(not np.isfinite(pair).all() for pair in probabilities)
    if unknown:
        raise InputError(
            f"the probabilities of {unknown} of {len(questions)} questions are not numbers: the model is broken"
        )
    truth = np.array([LETTERS.index(q.answer) == place for q, place in zip(questions, places, strict=True)])
    scores = np.array([pair[place] for pair, place in zip(probabilities, places, strict=True) if place is not None])
    return truth, scores, [question.patient for question in questions]


def figures(
    truth: np.ndarray, scores: np.ndarray, patients: Sequence[str], *, bootstrap: int, seed: int
) -> dict[str, Any]:
    """AUROC, AUPRC, Brier score and ECE, each with its 95% interval from a bootstrap of patients; prevalence; reliability.

    `truth` and `scores` `[questions]`: as `labels_and_scores` gives them. A figure that is not defined, as AUROC where all
    answers are yes, is None.
    """
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "auroc": auroc, "auprc": auprc, "brier": brier, "ece": expected_calibration_error,
    }  # fmt: skip
    index, names = _by_patient(patients)
    random = generator(seed, "bootstrap", "binary")
    resampled: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(bootstrap if len(names) > 1 else 0):
        rows = np.concatenate([index[place] for place in random.integers(len(names), size=len(names))])
        for name, measure in measures.items():
            resampled[name].append(measure(truth[rows], scores[rows]))
    tail = (1 - CONFIDENCE) / 2
    summary: dict[str, Any] = {"n": len(truth), "prevalence": float(truth.mean())}
    for name, measure in measures.items():
        value = measure(truth, scores)
        draws = np.array([draw for draw in resampled[name] if not np.isnan(draw)])
        summary[name] = None if np.isnan(value) else value
        summary[f"{name}_ci"] = np.quantile(draws, [tail, 1 - tail]).tolist() if len(draws) else None
    return summary | {"reliability": reliability(truth, scores)}


def _by_patient(patients: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """For each patient the places of the questions, and the patients' names."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner))[:-1]), names.tolist()


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a patient with the event has the higher score; NaN where there is only one class."""
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else float("nan")


def auprc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Average precision, the area under the precision-recall curve; NaN where nobody has the event."""
    return float(average_precision_score(truth, scores)) if truth.any() else float("nan")


def brier(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean squared difference between probability and outcome."""
    return float(((scores - truth) ** 2).mean())


def expected_calibration_error(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean distance between probability and frequency over ten bins of equal width, weighted by questions."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(place, weights=scores - truth, minlength=BINS))
    return float(gaps.sum() / len(truth))


def reliability(truth: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """For each bin with questions: their number, mean probability and frequency of the event."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        {
            "n": int((place == b).sum()),
            "probability": float(scores[place == b].mean()),
            "frequency": float(truth[place == b].mean()),
        }
        for b in range(BINS)
        if (place == b).any()
    ]
