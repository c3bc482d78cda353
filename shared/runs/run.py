"""A whole run, in order: registry, questions, policy, evaluation, GRPO, evaluation, report.

Started again in the same work directory (`shared.runs.workdir`), it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import Backend, Workload
from shared.config import RunConfig, changed_in_preset
from shared.errors import InputError
from shared.evaluation import figures
from shared.evaluation.answers import read_answers
from shared.evaluation.engine_check import engine_name
from shared.policy.tokenizer import embedding_rows, load_tokenizer, special_tokens
from shared.preparation import inputs, prepare
from shared.preparation.inputs import Inputs
from shared.questions import prompt_style
from shared.questions.prompts import PromptStyle
from shared.questions.record import Question, check_apart, check_questions, read_questions
from shared.questions.turns import end_of_turn_warning
from shared.report import run_page
from shared.runs import evaluations, forecast
from shared.runs.policy import check_policy, check_prompts, fetch_policy, make_policy
from shared.runs.workdir import Job, check_no_replay, check_shared, claim, release
from shared.storage import files
from shared.tasks.prompts import prompt_tokens
from shared.training import loop
from shared.training.metrics_log import METRICS_FILE, read_metrics, timings
from shared.training.rollouts import Sampled

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "torch", "deepspeed", "vllm", "transformers", "numpy")


def run(
    config: RunConfig,
    backend: Backend,
    workdir: Path,
    *,
    progress: bool = True,
    show_examples: bool = False,
    wandb_project: str = "",
) -> dict[str, Any]:
    """Do what is not done yet and return the summary. Raises InputError for a work directory of another config.

    Every process of a run calls it. Process 0 writes the files and returns the summary; the others wait where they need
    the files, and return an empty one. Raises Stopped where a SIGTERM ends training early. Where it fails before anything is
    made, the work directory is free for another config again.
    """
    new_files: list[Path | str] = []  # those by which folders became this config's
    try:
        job = Job.of(config, backend, workdir, progress=progress)
        return _run(job, new_files, show_examples=show_examples, wandb_project=wandb_project)
    except InputError:
        release(workdir, new_files)
        raise


def _run(job: Job, new_files: list[Path | str], *, show_examples: bool, wandb_project: str) -> dict[str, Any]:
    """See `run`; the names of files by which folders become this config's are added to `new_files`."""
    config, backend = job.config, job.backend
    noted = _begin(job, new_files) if job.writes else None
    backend.barrier()
    _check_shared(job)
    fetch_policy(job, noted)
    train_questions, valid_questions = map(read_questions, job.question_files)
    policy, style = make_policy(job, train_questions, noted)
    inputs.check_alike(backend, policy, job.question_files)
    tokenizer = load_tokenizer(policy)
    stop_tokens = special_tokens(tokenizer, policy).stop
    train_questions, train_prompts, long_train = _prompts(config, tokenizer, policy, style, train_questions)
    valid_questions, valid_prompts, long_valid = _prompts(config, tokenizer, policy, style, valid_questions)
    if job.writes:
        lines = (
            prompt_style.style_line(style, config.model, tokenizer),
            end_of_turn_warning(tokenizer, stop_tokens),
            _long_prompts_warning(config, long_train, long_valid),
        )
        tqdm.write("\n".join(filter(None, lines)))
    prompts = [*train_prompts, *valid_prompts]
    workload = Workload(prompt_tokens=max(map(len, prompts)), questions=len(valid_questions))
    if not job.is_trained():
        _check_it_fits(job, policy, prompts, workload)
    learner = backend.learner(
        config, policy, optimizer=config.optimizer, steps=config.steps, reference=config.grpo.beta > 0
    )
    engine = backend.engine(config, policy, stop_tokens=stop_tokens, workload=workload)

    def evaluate(when: str) -> None:
        evaluations.evaluate(when, job, learner, engine, tokenizer, valid_questions, valid_prompts)

    with evaluations.dropped_with(engine_name(backend, engine), job.workdir, first=job.writes):
        evaluate("before")
        source = Sampled(config, engine, tokenizer, train_questions, train_prompts, any_process=backend.any_process)
        loop.train(config, learner, source, job.output(wandb_project))
        learner.finish_saves()
        if not job.is_trained():
            prompt_style.export(learner, job.trained, style, first=job.writes)
        evaluate("after")
    summary = summarise(job, valid_questions, show_examples=show_examples) if job.writes else {}
    backend.barrier()
    return summary


def _begin(job: Job, new_files: list[Path | str]) -> Inputs:
    """Check what the config names, make the folders this run's, and make its questions unless they are named or there.

    Process 0 calls it. Returns the digests that are noted of the run's inputs.
    """
    config = job.config
    check_policy(config)
    for path in job.question_files if config.data.train else ():
        check_questions(path)
    check_prompts(config)
    check_no_replay(job)
    noted = claim(config, job.workdir, *job.other_folders, new_files=new_files)
    inputs.hold_data(config.data, noted)
    if config.data.train:
        check_apart(*job.question_files)
    else:
        _make_questions(job, noted)
    return noted


def _make_questions(job: Job, noted: Inputs) -> None:
    """Make registry and questions in the work directory. Raises InputError where those of an earlier start were replaced."""
    paths = [Path(place) for place in job.question_files]
    by_name, folder = {path.name: path for path in paths}, paths[0].parent
    if all(path.is_file() for path in paths):  # otherwise `prepare` would make them again and say nothing
        noted.check("questions", folder, inputs.of_files(by_name))
    prepare.prepare(job.config.data, job.workdir / "data", seed=job.config.seed, progress=job.progress)
    noted.hold("questions", folder, inputs.of_files(by_name), own=True)


def _check_shared(job: Job) -> None:
    """Raise InputError where processes have different work directories, though this run needs one for all."""
    config = job.config
    own_workdirs = bool(config.data.train and config.model.path and config.checkpoint.folder)
    fix = "give data.train, data.valid, model.path and checkpoint.folder"
    check_shared(job.backend, job.workdir, own_workdirs=own_workdirs, fix=fix)


def _prompts(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    policy: Path,
    style: PromptStyle,
    questions: Sequence[Question],
) -> tuple[list[Question], list[np.ndarray], int]:
    """See `shared.tasks.prompts.prompt_tokens`."""
    return prompt_tokens(
        tokenizer, questions, style=style, rows=embedding_rows(policy),
        max_tokens=config.rollout.max_prompt_tokens, overlong=config.grpo.overlong_prompts,
    )  # fmt: skip


def _long_prompts_warning(config: RunConfig, train: int, valid: int) -> str:
    """What became of so many training and held-out prompts that are longer than the limit; "" where there are none."""
    if not train and not valid:
        return ""
    what = "lost their beginning" if config.grpo.overlong_prompts == "truncate_left" else "were left out"
    return (
        f"warning: {train:,} training and {valid:,} held-out prompts are longer than rollout.max_prompt_tokens = "
        f"{config.rollout.max_prompt_tokens:,} and {what}; --dry_run says how many tokens the longest has"
    )


def _check_it_fits(job: Job, policy: Path, prompts: Sequence[np.ndarray], workload: Workload) -> None:
    """Say what the run needs. Raises InputError where this machine does not have it. Every process calls it."""
    need = job.backend.need(job.config, policy, workload, trains=True)
    if job.writes:
        tokens = forecast.tokens_line(prompts, job.config.rollout.max_new_tokens)
        disk = forecast.disk_line(job.config, need, job.checkpoints)
        tqdm.write("\n".join([tokens, forecast.memory_line(need.memory), disk]))
    forecast.refuse(job.config, need, workload, folder=job.checkpoints if job.writes else None)


def summarise(job: Job, questions: Sequence[Question], *, show_examples: bool) -> dict[str, Any]:
    """Write `summary.json` and the report from what the run left in its work directory; returns the summary."""
    workdir = job.workdir
    before, after = (read_answers(evaluations.answers_file(workdir, when)) for when in evaluations.WHEN)
    summary = figures.summary(
        job.config.name,
        questions,
        before,
        after,
        config=job.config,
        timings=timings(read_metrics(workdir / METRICS_FILE)),
        environment=environment(job.backend.name),
    )
    style = prompt_style.recorded(job.config, workdir)
    summary["prompts"] = None if style is None else dataclasses.asdict(style)
    files.write_json(workdir / run_page.SUMMARY_FILE, summary)
    allowed = run_page.examples_allowed(summary["config"], show_examples)
    run_page.write_report(workdir, show_examples=allowed)
    return summary


def environment(backend: str) -> dict[str, Any]:
    """Versions of the packages and the machine, as a report states them."""
    versions = {"backend": backend, "python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def config_line(config: RunConfig) -> str:
    """In one line what a run with this config will do, for `--dry_run`."""
    changed = changed_in_preset(config.grpo)
    preset = f"{config.grpo.preset} preset" + (f" changed in: {', '.join(changed)}" if changed else "")
    return (
        f"{config.name}: {config.steps} optimizer steps of {config.grpo.questions_per_step} questions x "
        f"{config.grpo.group_size} completions ({preset}; loss {config.grpo.loss}, beta "
        f"{config.grpo.beta}), learning rate {config.optimizer.learning_rate}, seed {config.seed}"
    )
