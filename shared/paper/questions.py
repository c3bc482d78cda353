"""Turns the question sets of the original into questions of this project, for `--compat=paper`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.paper import artefacts, denoising, prediction
from shared.paper.cohorts import PaperCohort
from shared.paper.denoising import Asked, Material, Message
from shared.paper.draws import SEED, Draws
from shared.paper.prediction import Predicted
from shared.paper.records import HOSPITAL, HOSPITAL_FIRST
from shared.questions.record import LETTERS, Question
from shared.registry.patients import pseudonym
from shared.registry.store import Registry
from shared.tasks.aki import AKI_QUESTION
from shared.tasks.stroke_outcome import MACE, MRS, OUTCOME_QUESTIONS

OUTCOMES = {"mrs_3m": MRS, "mace_1y": MACE}
Progress = Callable[[int], object] | None


def questions(
    registry: Registry,
    cohort: PaperCohort,
    material: Material,
    split: str,
    count: int,
    *,
    task: str,
    masked: int,
    all_victims: bool,
    progress: Progress = None,
) -> tuple[list[Question], int]:
    """Up to `count` questions of a split, and how many were left out because they have more options than there are letters.

    For denoising, messages come from one pass over the patients, or from complete passes until there are enough (see
    `denoising.oversample`); then they are shuffled as the original's data library does. Each set begins with the same seed.
    """
    rows = artefacts.rows(cohort.tables[split])
    draws = Draws(SEED)
    if task == "denoising":
        messages = _messages(rows, material, draws, count, masked, all_victims, progress)
        order = np.random.default_rng(SEED).permutation(len(messages))[:count]
        asked = [(messages[i], question) for i in order for question in messages[i].asked]
        questions_or_none = [_question(registry, *pair, number) for number, pair in enumerate(asked)]
    else:
        predictions = _predictions(rows, cohort, material, draws, task, count)
        questions_or_none = [
            _predicted(registry, cohort, task, prediction, number) for number, prediction in enumerate(predictions)
        ]
    complete = [question for question in questions_or_none if question is not None]
    return complete[:count], len(questions_or_none) - len(complete)


def _messages(
    rows: Sequence[dict[str, Any]],
    material: Material,
    draws: Draws,
    count: int,
    masked: int,
    all_victims: bool,
    progress: Progress,
) -> list[Message]:
    if all_victims:
        return denoising.all_victims(rows, material, draws, progress=progress)
    if len(rows) < count:
        return denoising.oversample(rows, material, draws, wanted=count, count=masked, progress=progress)
    return denoising.plain(rows, material, draws, count=masked, progress=progress)


def _predictions(
    rows: Sequence[dict[str, Any]], cohort: PaperCohort, material: Material, draws: Draws, task: str, count: int
) -> list[Predicted]:
    if task == "aki":
        candidates = [
            question
            for row in rows
            for question in prediction.aki_questions(row, cohort.flags[row["Unique ID"]], material.places, draws)
        ]
        patients = len({question.patient for question in candidates})
        return prediction.one_for_each(candidates, min(count, patients), Draws(SEED))
    target = OUTCOMES[task]
    if task == "mace_1y":  # the original made this set after the other one, and did not reset the generators
        prediction.outcome_questions(rows, MRS, material.places, cohort.choices[MRS], draws)
    return prediction.outcome_questions(rows, target, material.places, cohort.choices[target], draws)


def _question(registry: Registry, message: Message, asked: Asked, number: int) -> Question | None:
    if len(asked.choices) > len(LETTERS):
        return None
    feature = next((feature for feature in registry.features if feature.name == asked.victim), None)
    section = "" if feature is None else feature.section
    stats = registry.statistics.get(asked.victim)
    majority = max(
        range(len(asked.choices)), key=lambda i: 0.0 if stats is None else _frequency(stats, asked.choices[i])
    )
    return Question(
        **_about(registry, message.patient, "denoising", asked.victim, number),
        section=HOSPITAL_FIRST if section == HOSPITAL else section,
        context=message.record,
        question=asked.line,
        choices=asked.choices,
        answer=LETTERS[asked.right],
        majority=LETTERS[majority],
    )


def _frequency(stats: Any, text: str) -> float:
    if stats.finite:
        return float(dict(zip(stats.vocab, stats.weights, strict=True)).get(text, 0.0))
    try:
        return float(stats.density(float(text)))
    except ValueError:
        return 0.0


def _predicted(
    registry: Registry, cohort: PaperCohort, task: str, predicted: Predicted, number: int
) -> Question | None:
    if len(predicted.choices) > len(LETTERS):
        return None
    aki = task == "aki"
    line = f"\n{AKI_QUESTION}" if aki else OUTCOME_QUESTIONS[OUTCOMES[task]]
    stats = None if aki else cohort.choices[OUTCOMES[task]]
    shares = {"no": 1.0} if stats is None else dict(zip(stats.vocab, stats.weights, strict=True))
    majority = max(range(len(predicted.choices)), key=lambda place: shares.get(predicted.choices[place], 0.0))
    return Question(
        **_about(registry, predicted.patient, task, "aki_48h" if aki else OUTCOMES[task], number),
        section="",
        context=predicted.message[: predicted.message.rindex(f"\n{line}")],
        question=line,
        choices=predicted.choices,
        answer=LETTERS[predicted.right],
        majority=LETTERS[majority],
    )


def _about(registry: Registry, patient: Any, task: str, feature: str, number: int) -> dict[str, Any]:
    name = pseudonym(str(registry.provenance.get("salt", "")), str(patient))
    return {
        "id": f"{registry.cohort}-{task}-{name}-{feature}-paper{number}",
        "cohort": registry.cohort,
        "task": task,
        "feature": feature,
        "patient": name,
    }
