"""The files that an evaluation reads beside the answers: each is of these very questions, or the evaluation does not begin."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pandas as pd

from shared.errors import InputError
from shared.evaluation import baselines, lm_eval, orders
from shared.evaluation.answers import Answer, read_answers
from shared.evaluation.comparison import check_same
from shared.evaluation.options import EvaluationOptions
from shared.evaluation.subgroups import check_patients
from shared.questions.record import Question, read_questions
from shared.registry import store
from shared.registry.patients import read_patients
from shared.registry.store import Registry
from shared.storage.files import check_folder


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an evaluation is made from. None: that file is not asked for."""

    questions: list[Question]  # as the files have them
    asked: list[Question]  # as they are answered: in every cyclic order where that is wanted
    other_answers: list[Answer] | None  # of the model that is compared
    patients: pd.DataFrame | None
    registry: Registry | None


def read_inputs(options: EvaluationOptions) -> Inputs:
    """Read every file that the options name, and see that the folders they name can be written.

    Raises InputError for a file that is missing, damaged or of other questions, and for such a folder.
    """
    questions = read_all_questions(options)
    if options.lm_eval:
        check_folder("lm_eval", Path(options.lm_eval))
        lm_eval.check_target(questions, Path(options.lm_eval), options.lm_eval_name)
    if options.evaluates:
        out = Path(options.out)
        check_folder("out", out)
        if options.lm_eval and Path(options.lm_eval).absolute() in (out.absolute(), *out.absolute().parents):
            raise InputError(
                f"--lm_eval={options.lm_eval}: is replaced as a whole, --out with it; give a folder of its own"
            )
    asked = orders.cyclic(questions) if options.cyclic else questions
    other_answers = patients = registry = None
    if options.compare:
        other_answers = read_answers(Path(options.compare))
        check_same(other_answers, asked)
    if options.patients:
        patients = read_patients(Path(options.patients))
        check_patients(patients, {question.patient for question in asked})
    if options.registry:
        registry = store.load(Path(options.registry))
        baselines.check_registry(registry, asked)
    return Inputs(questions, asked, other_answers, patients, registry)


def read_all_questions(options: EvaluationOptions) -> list[Question]:
    """The questions of all files, the first `limit` of them. Raises InputError where one comes twice."""
    questions = [question for path in options.questions for question in read_questions(path)]
    questions = questions[: options.limit or None]
    counts = Counter(question.id for question in questions)
    repeated = sum(count > 1 for count in counts.values())
    if repeated:
        raise InputError(f"--questions: {repeated} questions come more than once; give each file once")
    return questions
