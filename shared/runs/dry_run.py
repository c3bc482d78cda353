"""What a training run would need, before it is begun: nothing of it is made but in a folder that is removed, no weights are read.

With `measure` a few steps of the real programs are made there, too, and say how long the run will take.
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
from shared.questions.prompts import prompt_tokens
from shared.questions.record import Question, check_apart, read_questions, read_words, write_questions
from shared.report.run_page import duration
from shared.runs import forecast, memory, run
from shared.storage import buckets, files
from shared.training.metrics_log import METRICS_FILE, read_metrics

TRAIN, VALID = 200, 100  # questions made to look at, where there are none yet
LOOKED_AT = 2_000  # prompts that are counted; the run itself counts all
STEPS = 3  # measured, and one before them that compiles


@dataclasses.dataclass(frozen=True)
class Sample:
    """Questions of a run, made for this where they are not there, and what is to be said of them."""

    train: list[Question]
    valid: list[Question]
    answered: int  # held-out questions that the run itself has
    words: list[str] | None  # from which a tokenizer may learn (`shared.questions.record.read_words`)
    note: str


def told(config: RunConfig, backend: Backend, workdir: Path | None, *, measure: bool) -> Iterator[str]:
    """Lines on the tokens, memory, disk and steps of a run, and its time. What is not known is said, with the reason.

    Raises InputError where the run cannot fit, or would be refused for its questions or its work directory.
    """
    config = backend.resolved(config)
    if config.data.train and all(Path(place).is_file() for place in (config.data.train, config.data.valid)):
        check_apart(config.data.train, config.data.valid)
    if workdir is not None and run.check_config(config, workdir, "--workdir") is not None:
        inputs.check_data(config.data, inputs.Inputs(workdir))
        goes_on = "it is trained" if (workdir / "trained").is_dir() else "it goes on from its last checkpoint"
        yield f"begun    {workdir} holds this run; {goes_on}"
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
            workload = Workload(prompt_tokens=longest, questions=sample.answered)
        except InputError as error:
            yield f"tokens   not known ({error})"
            try:
                model = architecture(config, None, temporary)
            except InputError as missing:
                yield f"memory   not known ({missing})"
                return
        need = backend.need(config, model, workload, trains=True)
        place = run.checkpoint_folder(config, backend, workdir or Path())
        yield forecast.memory_line(need.memory)
        yield forecast.disk_line(config, need, place)
        forecast.refuse(config, need, workload, folder=place)
        if measure:
            yield from measured(config, backend, questions(config, workdir, temporary), temporary)


def questions(config: RunConfig, workdir: Path | None, temporary: Path) -> Sample:
    """The questions that the run has, or some as it would make them. Raises InputError where they cannot be had."""
    data = config.data
    made = None if workdir is None else workdir / "data" / "questions"
    if data.train:
        places: tuple[Path | str, Path | str] = data.train, data.valid
        note = ""
    elif made is not None and (made / "valid.parquet").is_file():
        places, note = (made / "train.parquet", made / "valid.parquet"), ""
    else:
        fewer = dataclasses.replace(
            data, train_questions=min(data.train_questions, TRAIN), valid_questions=min(data.valid_questions, VALID)
        )
        prepare.prepare(fewer, temporary / "data", seed=config.seed, progress=False)
        made = temporary / "data" / "questions"
        places = made / "train.parquet", made / "valid.parquet"
        note = f" (of {fewer.train_questions + fewer.valid_questions} questions made to look at)"
    train, valid = (read_questions(place) for place in places)
    answered = data.valid_questions if note else len(valid)
    if len(train) > LOOKED_AT:
        train = [train[place] for place in np.linspace(0, len(train) - 1, LOOKED_AT).astype(int)]
        note = note or f" (of {LOOKED_AT + len(valid):,} of them; the run counts all)"
    return Sample(train, valid, answered, read_words(places[0]), note)


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
        run.make_tokenizer(config, sample.train, folder, sample.words)
        found = special_tokens(load_tokenizer(folder), folder)
        size, tokens = found.vocab_size, {"bos": found.bos, "eos": found.eos, "pad": found.pad}
    folder.mkdir(exist_ok=True)
    files.write_json(folder / MODEL_CONFIG, hugging_face_config(config.model, size, **tokens))
    return folder


def prompts_of(config: RunConfig, model: Path, sample: Sample) -> list[np.ndarray]:
    """Token ids of the sample's prompts, as the run renders them but none shortened or left out."""
    tokenizer = load_tokenizer(model)
    _, prompts, _ = prompt_tokens(
        tokenizer, [*sample.train, *sample.valid], style=prompt_style.choose(config.model, model, tokenizer),
        rows=embedding_rows(model), max_tokens=sys.maxsize, overlong=config.grpo.overlong_prompts,
    )  # fmt: skip
    return prompts


def measured(config: RunConfig, backend: Backend, sample: Sample, temporary: Path) -> Iterator[str]:
    """Lines on the time of a step and of the whole run, from a few steps of it below the folder `temporary`.

    A policy that starts from random weights is warmed up as briefly, so its completions may be longer than the run's.
    """
    rounds, slots = 1 + STEPS, config.evaluation.slots or config.rollout.slots
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
    everything = time.perf_counter() - begin
    if backend.process > 0:
        return
    seconds = read_metrics(temporary / "run" / METRICS_FILE)["seconds_total"].to_numpy()
    engines = files.read_json(temporary / "run" / "evaluation" / "engines.json")
    inner = config.grpo.inner_steps
    first, step = float(seconds[:inner].sum()), float(seconds[inner:].sum()) / (len(seconds) - inner)
    each = engines["after"]["seconds"] / engines["after"]["questions"]
    asked = sample.answered
    training, evaluating = first + step * (config.steps - inner), 2 * each * asked
    yield (
        f"time     a step {duration(step)} (the first, which compiles, {duration(first)}); {config.steps:,} steps "
        f"{duration(training)}, both evaluations of {asked:,} questions {duration(evaluating)}: about "
        f"{duration(training + evaluating)} in all, without preparing data"
        + (" and warm-up" if config.warmup.steps and not config.model.path else "")
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024
    yield f"measured in {duration(everything)}; this process took {memory.text(peak)} of this machine's memory at most"
