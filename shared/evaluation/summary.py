"""All figures of an evaluation: what stands in its `summary.json`, from questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from shared.evaluation import baselines, binary, figures, orders
from shared.evaluation.answers import Answer
from shared.evaluation.comparison import compare
from shared.evaluation.inputs import Inputs
from shared.evaluation.listener import SILENT, Listener
from shared.evaluation.options import EvaluationOptions
from shared.evaluation.subgroups import subgroups
from shared.questions.record import Question
from shared.registry.store import Registry

SHORT = ("accuracy", "ci", "macro_f1", "answered", "format", "readings")  # the figures of boxes and baselines


def summary_of(
    options: EvaluationOptions,
    inputs: Inputs,
    answers: Sequence[Answer],
    boxed: Sequence[Answer] | None = None,
    *,
    listener: Listener = SILENT,
) -> dict[str, Any]:
    """Every figure of the answers to `inputs.asked`, ready for JSON; None where it is not asked for or not known.

    `boxed`: the answers that the model boxed itself, where `answers` are a forced choice. The figures of one model are
    explained at `figures.summarise`, `figures.details` and `figures.ceilings`, the others where they are computed.
    Raises InputError where the answers are not one for each question.
    """
    questions = inputs.asked
    resampling = {"bootstrap": options.bootstrap, "seed": options.seed}
    summary = figures.summarise(questions, answers, **resampling) | figures.ceilings(questions)
    summary |= figures.details(questions, answers)
    summary |= {"protocol": options.protocol, "answer_rule": options.answer_rule}
    summary["boxed"] = None if boxed is None else _short(questions, boxed, resampling)
    summary |= {"subgroups": None, "comparison": None, "binary": None, "orders": None}
    summary["baselines"] = {"most frequent value": _short(questions, baselines.majority(questions), resampling)}
    if inputs.registry is not None:
        trees = _boosted_trees(inputs.registry, questions, listener)
        summary["baselines"]["boosted trees"] = _short(questions, trees, resampling)
    if inputs.patients is not None:
        summary["subgroups"] = subgroups(answers, inputs.patients, **resampling)
    if inputs.other_answers is not None:
        summary["comparison"] = compare(inputs.other_answers, answers, **resampling)
    if options.cyclic:
        summary["orders"] = orders.consistency(questions, answers)
    yes_or_no = binary.labels_and_scores(questions, [answer.probabilities for answer in answers])
    if yes_or_no is not None:
        truth, scores, patients = yes_or_no
        summary["binary"] = binary.figures(truth, scores, patients, **resampling)
    return summary


def _boosted_trees(registry: Registry, questions: Sequence[Question], listener: Listener) -> list[Answer]:
    """What boosted trees answer. What they do is said first, as they may take a minute."""
    features = len({question.feature for question in questions})
    listener.warning(
        f"trees    boosted trees learn each of the {features} features asked for from {len(registry.train):,} patients"
    )
    with tqdm(total=len(questions), desc="boosted trees", unit="question", disable=not listener.progress) as bar:
        return baselines.boosted_trees(registry, questions, progress=bar.update)


def _short(questions: Sequence[Question], answers: Sequence[Answer], resampling: dict[str, int]) -> dict[str, Any]:
    summary = figures.summarise(questions, answers, **resampling)
    return {name: summary[name] for name in SHORT}
