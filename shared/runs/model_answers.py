"""The answers of a model directory to questions, kept part by part: the same call goes on behind what an earlier one kept.

out/answers.parquet    the answers; where this file is, all others are, too
out/boxed.parquet      with a forced choice: what was boxed in the same reasoning
out/completions.jsonl  questions and completions as text, where they are asked for; of votes also samples.jsonl
out/engine.json        what the engine's check found
out/request.json       what was asked for (shared/runs/kept.py); other answers in the same folder are refused
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared.backend import Backend, RolloutEngine
from shared.config import EvaluationConfig, RunConfig
from shared.errors import InputError
from shared.evaluation.answering import Answered, answer_questions, force_answers
from shared.evaluation.answers import Answer, read_answers, read_by, write_answers
from shared.evaluation.engine_check import Forced
from shared.evaluation.forced_choice import phrase_and_letters
from shared.evaluation.listener import Listener
from shared.evaluation.options import EvaluationOptions
from shared.policy.tokenizer import check_in_embedding, embedding_rows, load_tokenizer, special_tokens
from shared.questions.prompts import PromptStyle
from shared.questions.record import Question
from shared.report.words import duration
from shared.runs import model_engine
from shared.runs.kept import COMPLETIONS_FILE, REQUEST_FILE, Kept, digest, model_digest
from shared.storage import files
from shared.tasks.prompts import prompt_tokens

ANSWERS, BOXED, ENGINE = "answers.parquet", "boxed.parquet", "engine.json"
SAMPLES = "samples.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """A model and the questions that it is asked: what is known before its weights are read."""

    options: EvaluationOptions
    config: RunConfig
    backend: Backend
    tokenizer: PreTrainedTokenizerFast
    style: PromptStyle
    questions: list[Question]
    prompts: list[np.ndarray]  # of each question its token ids `[time]`
    shortened: int  # prompts that lost their beginning
    stop: Sequence[int]  # tokens that end a completion
    forced: Forced | None  # what a forced choice asks for; None for the protocol `boxed`

    @property
    def out(self) -> Path:
        """The folder of the answers."""
        return Path(self.options.out)

    def parts(self, engine: RolloutEngine, *, first: int, last: int, progress: bool) -> Iterator[list[Answered]]:
        """The answers to the questions from `first` to before `last`, part by part, by the protocol of the options."""
        asked = (self.config, engine, self.tokenizer, self.questions[:last], self.prompts[:last])
        if self.forced is not None:
            return force_answers(*asked, stop=self.stop, done=first, progress=progress)
        samples, temperature = self.options.samples, self.options.temperature
        return answer_questions(*asked, done=first, samples=samples, temperature=temperature, progress=progress)

    def request(self) -> dict[str, Any]:
        """What the answers depend on: only a call that asks for the same goes on from them."""
        options = self.options
        return {
            "model": model_digest(Path(options.model)),
            "questions": digest(question.row() for question in self.questions),
            "prompts": digest(prompt.tolist() for prompt in self.prompts),
            "stop_tokens": [int(token) for token in self.stop],
            "protocol": options.protocol,
            "samples": options.samples,
            "temperature": options.temperature,
            "seed": options.seed if options.temperature > 0 else None,
            # Of one completion both letters are kept, of a vote the shares by one of them.
            "answer_rule": options.answer_rule if options.samples > 1 else None,
            "max_prompt_tokens": options.generation.max_prompt_tokens,
            "max_new_tokens": options.generation.max_new_tokens,
            "completions": options.completions,
            "compute_dtype": self.config.learner.compute_dtype,
            "engine": self.backend.engine_kind(self.config),
        }


def prepared(
    options: EvaluationOptions, questions: Sequence[Question], make_backend: Callable[[RunConfig], Backend]
) -> ModelEvaluation:
    """Read the model's tokenizer, render the prompts, and make the backend; no weights are read.

    Raises InputError for a model directory that lacks something, or whose chat template, embedding or letters do not suit.
    """
    folder = Path(options.model)
    tokenizer = load_tokenizer(folder)
    config = model_engine.config_of(
        options.generation,
        folder,
        questions=max(1, len(questions)),
        samples=options.samples,
        seed=options.seed,
        answer_rule=options.answer_rule,
        evaluation=EvaluationConfig(bootstrap=options.bootstrap, examples=len(questions) if options.completions else 0),
    )
    style, rows = model_engine.style_of(config, tokenizer, Path(options.out)), embedding_rows(folder)
    asked, prompts, shortened = prompt_tokens(
        tokenizer,
        questions,
        style=style,
        rows=rows,
        max_tokens=options.generation.max_prompt_tokens,
        overlong="truncate_left",
    )
    stop = special_tokens(tokenizer, folder).stop
    forced = None
    if options.protocol == "forced_choice":
        forced = Forced(*phrase_and_letters(tokenizer), stop)
        check_in_embedding(tokenizer, [forced.phrase, forced.letters], rows, "the answer phrase and its letters")
    backend = make_backend(config)
    return ModelEvaluation(
        options=options,
        config=backend.resolved(config),
        backend=backend,
        tokenizer=tokenizer,
        style=style,
        questions=asked,
        prompts=prompts,
        shortened=shortened,
        stop=stop,
        forced=forced,
    )


def say_need(evaluation: ModelEvaluation, listener: Listener, *, measure: bool) -> None:
    """Say what the answers need of this machine; with `measure` also how long they take, from a few of the questions.

    Nothing is kept. Every process calls it. Raises InputError where it cannot fit.
    """
    config, backend, prompts = evaluation.config, evaluation.backend, evaluation.prompts
    model_engine.say_need(config, backend, prompts, listener, forced=evaluation.forced)
    if not measure:
        return
    engine, _ = model_engine.engine_of(config, backend, prompts, stop=evaluation.stop, forced=evaluation.forced)
    count = len(evaluation.questions)
    measured = min(config.rollout.slots, count)  # as many as are answered at once
    for _ in range(2):  # the first time programs are compiled
        begin = time.perf_counter()
        for _ in evaluation.parts(engine, first=0, last=measured, progress=False):
            pass
        seconds = (time.perf_counter() - begin) / measured
    if backend.process == 0:
        listener.line(f"time     {seconds:.3g} s a question, {duration(seconds * count)} for {count:,} of them")


def answers_of(evaluation: ModelEvaluation, listener: Listener) -> tuple[list[Answer], list[Answer] | None]:
    """The model's answers, and those that it boxed where others were forced; in process 0, elsewhere none.

    They are on disk, whole, when this returns. What an earlier call kept is not asked again. Every process calls it.
    Raises InputError where the folder holds answers to another request, SyncError where the engine is not this model's.
    """
    config, backend, out = evaluation.config, evaluation.backend, evaluation.out
    kept = Kept(out, evaluation.request(), backend)
    beginning = (config, backend, evaluation.tokenizer, evaluation.style, out, listener)
    if backend.any_process(backend.process == 0 and (out / ANSWERS).is_file()):
        model_engine.begin(*beginning)
        return _earlier(evaluation, listener)
    count = len(evaluation.questions)
    if kept.done < count:
        prompts, forced = evaluation.prompts, evaluation.forced
        model_engine.say_need(config, backend, prompts, listener, forced=forced)
        engine, checked = model_engine.engine_of(config, backend, prompts, stop=evaluation.stop, forced=forced)
        model_engine.begin(*beginning)
        if backend.process == 0:
            _keep_check(out, checked)
            if evaluation.shortened:
                limit = config.rollout.max_prompt_tokens
                listener.warning(
                    f"{evaluation.shortened} prompts were longer than {limit} tokens and lost their beginning"
                )
            if kept.done:
                listener.warning(f"{kept.done} of {count} answers are there already; it goes on behind them")
        progress = listener.progress and backend.process == 0
        for part in evaluation.parts(engine, first=kept.done, last=count, progress=progress):
            kept.add([answered.to_row() for answered in part])
    return _collected(evaluation, kept)


def _keep_check(out: Path, checked: dict[str, Any]) -> None:
    """Write what the engine's check found; of several starts of one evaluation the one with the largest gap."""
    earlier = files.read_json(out / ENGINE) if (out / ENGINE).is_file() else None
    if earlier is None or earlier["gap"] <= checked["gap"]:
        files.write_json(out / ENGINE, checked)


def _earlier(evaluation: ModelEvaluation, listener: Listener) -> tuple[list[Answer], list[Answer] | None]:
    """What an evaluation that has ended left, in process 0."""
    out = evaluation.out
    if evaluation.backend.process > 0:
        return [], None
    if not (out / REQUEST_FILE).is_file():
        raise InputError(
            f"--out={out}: holds the answers of an earlier version; give another --out, or remove that one"
        )
    listener.warning("the answers are there already; only the figures are made again")
    answers = _by_rule(evaluation, read_answers(out / ANSWERS))
    return answers, None if evaluation.forced is None else _by_rule(evaluation, read_answers(out / BOXED))


def _collected(evaluation: ModelEvaluation, kept: Kept) -> tuple[list[Answer], list[Answer] | None]:
    """The answers of all parts, in process 0, which puts them into their files."""
    options, out = evaluation.options, evaluation.out
    if evaluation.backend.process > 0:
        return [], None
    rows = [Answered.from_row(row) for row in kept.rows]
    answers, boxed = _by_rule(evaluation, [row.answer for row in rows]), None
    if evaluation.forced is not None:
        boxed = _by_rule(evaluation, [row.boxed for row in rows if row.boxed is not None])
        write_answers(out / BOXED, boxed)
    if options.completions:
        files.write_json_lines(out / COMPLETIONS_FILE, [row.text for row in rows])
    if options.completions and options.samples > 1:
        samples = [{"id": row.answer.question_id, **sample} for row in rows for sample in row.samples or ()]
        files.write_json_lines(out / SAMPLES, samples)
    write_answers(out / ANSWERS, answers)  # the last: where it is, all is
    kept.remove_parts()
    return answers, boxed


def _by_rule(evaluation: ModelEvaluation, answers: Sequence[Answer]) -> list[Answer]:
    """The answers by the rule of this call: an earlier one may have had the other."""
    rule = evaluation.options.answer_rule
    return [read_by(rule, question, answer) for question, answer in zip(evaluation.questions, answers, strict=True)]
