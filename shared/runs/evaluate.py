"""A whole evaluation in its folder: answers of a model, or made elsewhere, then every figure and a page.

`creason evaluate` calls it, and so may any other program:

    options = EvaluationOptions(model="trained", questions=["valid.parquet"], out="evaluation")
    summary = evaluate(options, make_backend)

It stands here, and not with the figures in `shared/evaluation/`, because it needs the page and what keeps a long task.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.backend import Backend
from shared.config import RunConfig
from shared.errors import InputError
from shared.evaluation import lm_eval
from shared.evaluation.answers import Answer, write_answers
from shared.evaluation.given_answers import Given
from shared.evaluation.inputs import Inputs, read_inputs
from shared.evaluation.listener import SILENT, Listener
from shared.evaluation.options import EvaluationOptions
from shared.evaluation.summary import summary_of
from shared.questions import prompt_style
from shared.report import evaluation_origin
from shared.report.evaluation_page import write_page
from shared.runs import model_answers
from shared.runs.kept import COMPLETIONS_FILE, REQUEST_FILE, check_request, digest
from shared.storage import files

SUMMARY_FILE, PAGE_FILE = "summary.json", "evaluation.html"
MakeBackend = Callable[[RunConfig], Backend]


def evaluate(
    options: EvaluationOptions,
    make_backend: MakeBackend,
    *,
    listener: Listener = SILENT,
    command: str = "",
) -> dict[str, Any]:
    """Do all that the options say, and return what stands in `summary.json`; nothing where only a task folder is wanted.

    `make_backend` is called once the questions, the other files and the model's tokenizer are checked, and not at all
    without a model. `command` stands on the page as what makes it again. Every process of several calls it; process 0 writes
    the files and returns the summary, the others return an empty one. Raises InputError for a bad file or model before
    anything is generated, SyncError where the engine does not compute what the model's weights do.
    """
    inputs = _begin(options, listener)
    if not options.evaluates:
        return {}
    if options.answers:
        answers, source = _given_answers(options, inputs, listener)
        summary = summary_of(options, inputs, answers, listener=listener)
        summary |= {"made_elsewhere": source, "prompts": None, "engine": None}
        _write(options, summary, backend=None, command=command)
        return summary
    evaluation = model_answers.prepared(options, inputs.asked, make_backend)
    backend, out = evaluation.backend, Path(options.out)
    summary = {}
    answers, boxed = model_answers.answers_of(evaluation, listener)
    if backend.process == 0:
        engine = out / model_answers.ENGINE  # an earlier version wrote none
        summary = summary_of(options, inputs, answers, boxed, listener=listener)
        summary |= {
            "made_elsewhere": None,
            "prompts": files.read_json(out / prompt_style.EVALUATION_FILE),
            "engine": files.read_json(engine) if engine.is_file() else None,
        }
        _write(options, summary, backend=backend.name, command=command)
    backend.barrier()
    return summary


def forecast_evaluation(
    options: EvaluationOptions, make_backend: MakeBackend, *, listener: Listener, measure: bool = False
) -> None:
    """Check everything as `evaluate` does, and say what the model needs of this machine; nothing is answered or kept.

    With `measure` a few questions are answered, and the time for all of them is said.
    """
    if not options.model:
        raise InputError("--model: is needed to say what its answers need")
    inputs = _begin(options, listener)
    model_answers.say_need(model_answers.prepared(options, inputs.asked, make_backend), listener, measure=measure)


def _begin(options: EvaluationOptions, listener: Listener) -> Inputs:
    """Read and check all files, and write the task folder where one is wanted."""
    inputs = read_inputs(options)
    if options.lm_eval:
        prefill = options.generation.prefill
        task = lm_eval.export(
            inputs.questions,
            Path(options.lm_eval),
            options.lm_eval_name,
            until=lm_eval.model_ends(Path(options.model)) if options.model else (),
            max_new_tokens=options.generation.max_new_tokens,
            prefill="" if prefill == prompt_style.AUTO else prefill,
        )
        listener.line(f"task     {task}")
    return inputs


def _given_answers(
    options: EvaluationOptions, inputs: Inputs, listener: Listener
) -> tuple[list[Answer], dict[str, Any]]:
    """The answers of the file, written to the folder, and where they come from.

    Raises InputError where the file is not of these questions, or the folder holds other answers.
    """
    questions, out = inputs.asked, Path(options.out)
    given = Given(Path(options.answers), questions, samples=options.samples, allow_missing=options.allow_missing)
    request = {
        "answers": given.sha256,
        "questions": digest(question.row() for question in questions),
        "samples": options.samples,
        "answer_rule": options.answer_rule,
    }
    check_request(out, request)
    if given.repeated:
        listener.warning(f"{given.path}: {given.repeated} lines repeat an answer word for word; each counts once")
    answers = given.answers(questions, options.answer_rule)
    files.write_json(out / REQUEST_FILE, request)
    write_answers(out / model_answers.ANSWERS, answers)
    return answers, given.described()


def _write(options: EvaluationOptions, summary: dict[str, Any], *, backend: str | None, command: str) -> None:
    """Write figures and page."""
    out = Path(options.out)
    files.write_json(out / SUMMARY_FILE, summary)
    request = files.read_json(out / REQUEST_FILE)
    write_page(
        out / PAGE_FILE,
        summary,
        title=f"Evaluation of {evaluation_origin.model_name(options)}",
        made=evaluation_origin.origin(options, request, backend=backend, command=command),
        names=evaluation_origin.feature_names(options),
        examples=evaluation_origin.examples(out / COMPLETIONS_FILE) if options.show_examples else (),
    )
