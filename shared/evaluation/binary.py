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
    """The place of the option that says yes, in a question of yes or no, however they are written; None in any other."""
    texts = [text.strip().casefold() for text in question.choices]
    return texts.index(YES) if sorted(texts) == [NO, YES] else None


def labels_and_scores(
    questions: Sequence[Question], probabilities: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """`[questions]` whether the answer is yes, the probability given to yes, and patients; None unless all are of yes or no.

    `probabilities` are those of each question's options, in order. Raises InputError where one is not a number.
    """
    places = [positive_option(question) for question in questions]
    if not questions or any(place is None for place in places) or any(len(given) != 2 for given in probabilities):
        return None
    unknown = sum(not np.isfinite(given).all() for given in probabilities)
    if unknown:
        raise InputError(
            f"the probabilities of {unknown} of {len(questions)} questions are not numbers: the model is broken"
        )
    truth = np.array([LETTERS.index(q.answer) == place for q, place in zip(questions, places, strict=True)])
    scores = np.array([given[place] for given, place in zip(probabilities, places, strict=True) if place is not None])
    return truth, scores, [question.patient for question in questions]


def figures(
    truth: np.ndarray, scores: np.ndarray, patients: Sequence[str], *, bootstrap: int, seed: int
) -> dict[str, Any]:
    """AUROC, AUPRC, Brier score and ECE, each with its 95 % interval over patients, prevalence and the reliability bins.

    A figure that is not defined (only one class) is None.
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
    found: dict[str, Any] = {"n": len(truth), "prevalence": float(truth.mean())}
    for name, measure in measures.items():
        value = measure(truth, scores)
        known = np.array([draw for draw in resampled[name] if draw == draw])
        found[name] = None if value != value else value
        found[f"{name}_ci"] = np.quantile(known, [tail, 1 - tail]).tolist() if len(known) else None
    return found | {"reliability": reliability(truth, scores)}


def _by_patient(patients: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner))[:-1]), names.tolist()


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a patient with the event has the higher score; NaN where there is only one class."""
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else float("nan")


def auprc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Average precision; NaN where nobody has the event."""
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
