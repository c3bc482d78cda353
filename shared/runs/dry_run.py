"""What a training run would need, before it is begun. No weights are read, and all that is made is in a folder that is removed.

With `measure` the programs of the run make a few steps there, too, to say how long the run will take.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.backend import Backend, Workload
from shared.config import RunConfig
from shared.errors import InputError
from shared.policy.families import MODEL_CONFIG
from shared.policy.initial import hugging_face_config
from shared.policy.tokenizer import embedding_rows, load_tokenizer, special_tokens
from shared.preparation import inputs, prepare
from shared.questions import prompt_style
from shared.questions.record import Question, check_apart, read_questions, read_words, write_questions
from shared.report.words import duration
from shared.runs import forecast, memory, run
from shared.runs.policy import make_tokenizer
from shared.runs.workdir import check_config, checkpoint_folder, question_files
from shared.storage import buckets, files
from shared.tasks.prompts import prompt_tokens
from shared.training.metrics_log import METRICS_FILE, read_metrics

MADE_TRAIN, MADE_VALID = 200, 100  # questions that are made here, where the run has none yet
COUNTED_PROMPTS = 2_000  # training prompts whose tokens are counted; the run itself counts all
MEASURED_STEPS = 3  # after one step that compiles


@dataclasses.dataclass(frozen=True)
class Sample:
    """Questions of a run, or some that were made as the run would make them."""

    train: list[Question]
    valid: list[Question]
    held_out: int  # how many held-out questions the run itself has
    words: list[str] | None  # those that a tokenizer may learn (`shared.questions.record.read_words`)
    note: str  # which questions these are, where they are not all questions of the run


def lines(config: RunConfig, backend: Backend, workdir: Path | None, *, measure: bool) -> Iterator[str]:
    """Lines on the tokens, memory, disk, steps and, with `measure`, time of a run. A line says what is not known, and why.

    Raises InputError where the run cannot fit, or would be refused for its questions or its work directory.
    """
    config = backend.resolved(config)
    if config.data.train and all(Path(place).is_file() for place in (config.data.train, config.data.valid)):
        check_apart(config.data.train, config.data.valid)
    if workdir is not None and check_config(config, workdir, "--workdir") is not None:
        inputs.check_data(config.data, inputs.Inputs(workdir))
        status = "it is trained" if (workdir / "trained").is_dir() else "it goes on from its last checkpoint"
        yield f"begun    {workdir} holds this run; {status}"
    with tempfile.TemporaryDirectory(prefix="creason-dry-run-") as folder:
        temporary, workload = Path(folder), Workload.of_limits(config)
        try:
            sample = questions(config, workdir, temporary)
            model = architecture(config, sample, temporary)
            prompts = prompts_of(config, model, sample)
            yield forecast.tokens_line(prompts, config.rollout.max_new_tokens, sample.note)
            if cut := forecast.cut_line(prompts, config):
                yield cut
            longest = min(max(map(len, prompts)), config.rollout.max_prompt_tokens)
            workload = Workload(prompt_tokens=longest, questions=sample.held_out)
        except InputError as error:
            yield f"tokens   not known ({error})"
            try:
                model = architecture(config, None, temporary)
            except InputError as missing:
                yield f"memory   not known ({missing})"
                return
        need = backend.need(config, model, workload, trains=True)
        checkpoints = checkpoint_folder(config, backend, workdir or Path())
        yield forecast.memory_line(need.memory)
        yield forecast.disk_line(config, need, checkpoints)
        forecast.refuse(config, need, workload, folder=checkpoints)
        if measure:
            yield from measured(config, backend, questions(config, workdir, temporary), temporary)


def questions(config: RunConfig, workdir: Path | None, temporary: Path) -> Sample:
    """The questions that the run has, or some as it would make them. Raises InputError where there can be none."""
    data, note = config.data, ""
    paths = question_files(config, workdir or temporary)
    if not data.train and (workdir is None or not Path(paths[1]).is_file()):
        fewer = dataclasses.replace(
            data,
            train_questions=min(data.train_questions, MADE_TRAIN),
            valid_questions=min(data.valid_questions, MADE_VALID),
        )
        prepare.prepare(fewer, temporary / "data", seed=config.seed, progress=False)
        paths = question_files(config, temporary)
        note = f" (of {fewer.train_questions + fewer.valid_questions} questions made to look at)"
    train, valid = map(read_questions, paths)
    held_out = data.valid_questions if note else len(valid)
    if len(train) > COUNTED_PROMPTS:
        train = [train[index] for index in np.linspace(0, len(train) - 1, COUNTED_PROMPTS).astype(int)]
        note = note or f" (of {COUNTED_PROMPTS + len(valid):,} of them; the run counts all)"
    return Sample(train, valid, held_out, read_words(paths[0]), note)


def architecture(config: RunConfig, sample: Sample | None, temporary: Path) -> Path:
    """A folder with the `config.json` of the policy, and its tokenizer where there is a `sample` to train one on.

    Raises InputError where the model that is named is not here.
    """
    path = config.model.path
    if path:
        if buckets.is_address(path):
            raise InputError(f"model.path = {path!r} is copied as the run begins, and not looked at before")
        if not (Path(path) / MODEL_CONFIG).is_file():
            raise InputError(f"model.path = {path!r}: no config.json there")
        return Path(path)
    folder = temporary / "model"
    size, tokens = config.model.vocab_size, {"bos": 0, "eos": 0, "pad": 0}
    if sample is not None:
        make_tokenizer(config, sample.train, folder, sample.words)
        special = special_tokens(load_tokenizer(folder), folder)
        size, tokens = special.vocab_size, {"bos": special.bos, "eos": special.eos, "pad": special.pad}
    folder.mkdir(exist_ok=True)
    files.write_json(folder / MODEL_CONFIG, hugging_face_config(config.model, size, **tokens))
    return folder


def prompts_of(config: RunConfig, model: Path, sample: Sample) -> list[np.ndarray]:
    """Token ids `[time]` of the sample's prompts, as the run renders them, but none shortened or left out."""
    tokenizer = load_tokenizer(model)
    _, prompts, _ = prompt_tokens(
        tokenizer, [*sample.train, *sample.valid], style=prompt_style.choose(config.model, model, tokenizer),
        rows=embedding_rows(model), max_tokens=sys.maxsize, overlong=config.grpo.overlong_prompts,
    )  # fmt: skip
    return prompts


def measured(config: RunConfig, backend: Backend, sample: Sample, temporary: Path) -> Iterator[str]:
    """Lines on the time of a step and of the whole run, from a few steps that are made below the folder `temporary`.

    A policy that starts from random weights gets as few steps of warm-up, so its completions may be longer than the run's.
    """
    rounds, slots = 1 + MEASURED_STEPS, config.evaluation.slots or config.rollout.slots
    train, valid = temporary / "train.parquet", temporary / "valid.parquet"
    write_questions(train, sample.train, words=sample.words)
    write_questions(valid, sample.valid[:slots])  # as many as are answered at once
    short = dataclasses.replace(
        config,
        store_trajectories=False,
        data=dataclasses.replace(config.data, train=str(train), valid=str(valid)),
        warmup=dataclasses.replace(config.warmup, steps=min(config.warmup.steps, rounds)),
        grpo=dataclasses.replace(config.grpo, steps=rounds * config.grpo.inner_steps),
        health=dataclasses.replace(config.health, stop=False),
        checkpoint=dataclasses.replace(config.checkpoint, folder="", every=rounds * config.grpo.inner_steps),
    )  # fmt: skip
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run.run(short, backend, temporary / "run", progress=False)
    measuring = time.perf_counter() - begin
    if backend.process > 0:
        return
    step_seconds = read_metrics(temporary / "run" / METRICS_FILE)["seconds_total"].to_numpy()
    engines = files.read_json(temporary / "run" / "evaluation" / "engines.json")
    inner = config.grpo.inner_steps
    first = float(step_seconds[:inner].sum())
    step = float(step_seconds[inner:].sum()) / (len(step_seconds) - inner)
    question = engines["after"]["seconds"] / engines["after"]["questions"]
    training, evaluating = first + step * (config.steps - inner), 2 * question * sample.held_out
    yield (
        f"time     a step {duration(step)} (the first, which compiles, {duration(first)}); {config.steps:,} steps "
        f"{duration(training)}, both evaluations of {sample.held_out:,} questions {duration(evaluating)}: about "
        f"{duration(training + evaluating)} in all, without preparing data"
        + (" and warm-up" if config.warmup.steps and not config.model.path else "")
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024
    yield f"measured in {duration(measuring)}; this process took {memory.text(peak)} of this machine's memory at most"
