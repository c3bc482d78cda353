"""A whole run: registry, questions, policy, evaluation, GRPO, evaluation, report. Started again, it goes on where it was.

The work directory of a run:

    config.json            what it was asked for; a different config in the same directory is refused
    replay.json            of which recording it is a replay, where it is one (shared/replay.py), and how far it differs
    data/                  prepared registry and question files, where the run made them
    model/                 a copy of the model directory, where that is in a bucket
    tokenizer/ initial/    a small policy's tokenizer and random weights, where the run made them
    warmup/ policy/        next-token training of that policy, and the policy that GRPO starts from
    evaluation/            answers before and after, examples, and engines.json: whose answers, and how it was checked
    metrics.jsonl tensorboard/ trajectories/
    checkpoints/           where the config names no other folder
    trained/               the trained policy as a Hugging Face directory
    summary.json report.html plots/main.png
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared import evaluation, files, preparation, report, run_evaluations, storage, training
from shared.answering import answer_questions
from shared.backend import Backend, Learner, RolloutEngine
from shared.config import RunConfig, validate
from shared.engine_check import check_by_learner, engine_name
from shared.errors import InputError
from shared.initial import write_model
from shared.metrics import METRICS_FILE, plain, read_metrics, timings
from shared.prompts import PREFILL, SYSTEM_PROMPT, prompt_tokens, user_message
from shared.questions import Question, check_questions, read_questions
from shared.tokenizer import load_tokenizer, special_tokens, train_tokenizer
from shared.warmup import warm_up, worked_answer

CONFIG_FILE = "config.json"
REPLAY_FILE = "replay.json"
ROLES = ("system", "user", "assistant")
# What a run may be continued with: how it is computed, not what.
MAY_CHANGE = {
    "torch",
    "learner.micro_batch_rows",
    "learner.remat",
    "learner.reference_memory",
    "learner.logprob_chunk",
    "learner.mesh_data",
    "learner.mesh_fsdp",
    "learner.mesh_tensor",
    "learner.sequence_parallel",
    "rollout.mesh_tensor",
}
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
    the files, and return an empty one. Raises Stopped where a SIGTERM ends training early.
    """
    first = backend.process == 0
    progress = progress and first
    train_file, valid_file = _question_files(config, workdir)
    checkpoints = checkpoint_folder(config, backend, workdir)
    if first:
        check_policy(config)
        for path in (train_file, valid_file) if config.data.train else ():
            check_questions(path)
        if (workdir / REPLAY_FILE).is_file():
            raise InputError(f"{workdir}: holds a replay; go on with its --replay, or give another --workdir")
        claim(config, workdir, *([checkpoints] if config.checkpoint.folder else []))
        _make_questions(config, workdir, progress)
    backend.barrier()
    _check_shared(config, backend, workdir)
    fetch_policy(config, backend, workdir, progress=progress)
    train_questions, valid_questions = read_questions(train_file), read_questions(valid_file)
    policy = _policy(config, backend, workdir, train_questions, progress)
    tokenizer = load_tokenizer(policy)
    stop = special_tokens(tokenizer, policy).stop
    limit, overlong = config.rollout.max_prompt_tokens, config.grpo.overlong_prompts
    train_questions, train_prompts, cut = prompt_tokens(tokenizer, train_questions, max_tokens=limit, overlong=overlong)
    valid_questions, valid_prompts, cut_valid = prompt_tokens(
        tokenizer, valid_questions, max_tokens=limit, overlong=overlong
    )
    if first and (cut or cut_valid):
        what = "lost their beginning" if config.grpo.overlong_prompts == "truncate_left" else "were left out"
        tqdm.write(f"{cut} training and {cut_valid} held-out prompts were too long and {what}")

    optimizer, reference = config.optimizer, config.grpo.beta > 0
    learner = backend.learner(config, policy, optimizer=optimizer, steps=config.steps, reference=reference)
    engine = backend.engine(config, policy, stop_tokens=stop)
    parts = (config, backend, learner, engine, tokenizer, workdir, valid_questions, valid_prompts, progress)
    with run_evaluations.dropped_with(engine_name(backend, engine), workdir, first=first):
        _evaluate("before", *parts)
        source = training.Sampled(config, engine, tokenizer, train_questions, train_prompts)
        training.train(
            config, learner, source, workdir, checkpoints=checkpoints,
            first=first, agreed=backend.agreed, progress=progress, wandb_project=wandb_project,
        )  # fmt: skip
        learner.finish_saves()
        if not backend.agreed(first and (workdir / "trained").is_dir()):
            learner.export(workdir / "trained")
        _evaluate("after", *parts)
    found = summarise(config, workdir, valid_questions, backend.name, show_examples=show_examples) if first else {}
    backend.barrier()
    return found


def summarise(
    config: RunConfig, workdir: Path, questions: Sequence[Question], backend: str, *, show_examples: bool
) -> dict[str, Any]:
    """Write `summary.json` and the report from what the run left in its work directory."""
    before, after = (
        evaluation.read_answers(run_evaluations.answers_file(workdir, when)) for when in run_evaluations.WHEN
    )
    found = evaluation.summary(
        config.name,
        questions,
        before,
        after,
        config=config,
        timings=timings(read_metrics(workdir / METRICS_FILE)),
        environment=environment(backend),
    )
    files.write_json(workdir / report.SUMMARY_FILE, found)
    allowed = report.examples_allowed(found["config"], show_examples)
    report.write_report(workdir, show_examples=allowed)
    return found


def environment(backend: str) -> dict[str, Any]:
    """Versions and machine, as a report states them."""
    found = {"backend": backend, "python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def claim(config: RunConfig, workdir: Path, *others: Path | str) -> None:
    """Make the work directory and other folders this config's, or see that they are, but for `MAY_CHANGE`."""
    outdated = []
    for folder in (workdir, *others):
        place = storage.join(folder, CONFIG_FILE)
        if storage.is_file(place):
            changed = changed_fields(read_config(place), config)
            if not all(may_change(name, MAY_CHANGE) for name in changed):
                fix = "--workdir" if folder == workdir else "checkpoint.folder"
                raise InputError(
                    f"{folder}: holds a run with another config (it differs in {', '.join(changed[:5])}); give another {fix}, "
                    "or remove that one"
                )
            if not changed:
                continue
        outdated.append(place)
    for place in reversed(outdated):  # the work directory last: a bucket may refuse
        storage.write_json(place, plain(dataclasses.asdict(config)))


def read_config(path: Path | str) -> RunConfig:
    """The config of a run. A field that is younger than the run has its default."""
    try:
        return validate(storage.read_json(path))
    except InputError as error:
        raise InputError(f"{path}: not the config of a run of this version ({error}); give another --workdir") from None


def changed_fields(held: RunConfig, wanted: RunConfig) -> list[str]:
    """Names (`seed`, `grpo.beta`) of the fields in which two configs differ."""
    before, after = plain(dataclasses.asdict(held)), plain(dataclasses.asdict(wanted))
    return [
        f"{section}.{field}" if field else section
        for section, value in after.items()
        for field in (value if isinstance(value, dict) else [""])
        if (before[section][field] != value[field] if field else before[section] != value)
    ]


def may_change(name: str, allowed: AbstractSet[str]) -> bool:
    """Whether `allowed` names this field or its whole section."""
    return name in allowed or name.split(".")[0] in allowed


def checkpoint_folder(config: RunConfig, backend: Backend, workdir: Path) -> Path | str:
    """Where the checkpoints of a run are. Raises InputError for a bucket that the backend cannot write to."""
    folder = config.checkpoint.folder
    if not folder:
        return workdir / "checkpoints"
    if not storage.is_address(folder):
        return Path(folder)
    if not backend.checkpoints_in_buckets:
        raise InputError(
            f"checkpoint.folder = {folder!r}: the {backend.name} backend writes no checkpoints to a bucket; give a folder "
            "that all processes see"
        )
    return folder


def _check_shared(config: RunConfig, backend: Backend, workdir: Path) -> None:
    """Where nothing needs one work directory for all processes, each may have its own."""
    apart = config.data.train and config.model.path and config.checkpoint.folder
    if backend.process > 0 and not apart and not (workdir / CONFIG_FILE).is_file():
        raise InputError(
            f"{workdir}: process {backend.process} does not see what process 0 wrote there; put the work directory on a "
            "file system that all share, or give data.train, data.valid, model.path and checkpoint.folder"
        )


def _question_files(config: RunConfig, workdir: Path) -> tuple[Path | str, Path | str]:
    if config.data.train:
        return config.data.train, config.data.valid
    questions = workdir / "data" / "questions"
    return questions / "train.parquet", questions / "valid.parquet"


def _make_questions(config: RunConfig, workdir: Path, progress: bool) -> None:
    if not config.data.train:
        preparation.prepare(config.data, workdir / "data", seed=config.seed, progress=progress)


def check_policy(config: RunConfig) -> None:
    """Say at once that the model is not there, before anything is made."""
    if config.model.path and not storage.is_file(storage.join(config.model.path, "config.json")):
        raise InputError(
            f"model.path = {config.model.path!r}: no config.json there; give a Hugging Face model directory"
        )


def policy_folder(config: RunConfig, workdir: Path) -> Path:
    """The model directory that GRPO starts from: the one named, its copy in this work directory, or the small one made in it."""
    if config.model.path:
        return workdir / "model" if storage.is_address(config.model.path) else Path(config.model.path)
    return workdir / ("policy" if config.warmup.steps else "initial")


def fetch_policy(config: RunConfig, backend: Backend, workdir: Path, *, progress: bool) -> None:
    """Copy a model directory that is in a bucket into the work directory, once where processes share it.

    Every process calls it. Process 0 copies first, so that the others copy only where they do not see what it made.
    """
    if not storage.is_address(config.model.path):
        return
    for turn in (backend.process == 0, backend.process > 0):
        if turn:
            storage.fetch_model(config.model.path, policy_folder(config, workdir), progress=progress)
        backend.barrier()


def _policy(config: RunConfig, backend: Backend, workdir: Path, questions: Sequence[Question], progress: bool) -> Path:
    """The model directory that GRPO starts from, made here unless it is named."""
    policy = policy_folder(config, workdir)
    if config.model.path:
        return policy
    tokenizer, initial = workdir / "tokenizer", workdir / "initial"
    if backend.process == 0:
        _make_initial(config, questions, tokenizer, initial)
    backend.barrier()
    if not backend.agreed(policy.is_dir()):  # without a warm-up it is `initial`
        warm_up(config, backend, initial, load_tokenizer(tokenizer), questions, policy, workdir, progress=progress)
    return policy


def _make_initial(config: RunConfig, questions: Sequence[Question], tokenizer: Path, initial: Path) -> None:
    """A tokenizer for these questions, and random weights with its vocabulary."""
    if not tokenizer.is_dir():
        texts = (
            text for q in questions for text in (*ROLES, SYSTEM_PROMPT, user_message(q), PREFILL, worked_answer(q))
        )
        train_tokenizer(texts, config.model.vocab_size, tokenizer)
    if initial.is_dir():
        return
    tokens = special_tokens(load_tokenizer(tokenizer), tokenizer)
    with files.replacing(initial) as temporary:
        temporary.mkdir()
        write_model(
            config.model, temporary, vocab_size=tokens.vocab_size, bos=tokens.bos, eos=tokens.eos, pad=tokens.pad,
            seed=config.seed,
        )  # fmt: skip
        files.copy_companions(tokenizer, temporary)


def _evaluate(
    when: str,
    config: RunConfig,
    backend: Backend,
    learner: Learner,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    workdir: Path,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    progress: bool,
) -> None:
    # Process 0 has written it, if anybody: another may see it later, or have a work directory of its own.
    if backend.agreed(backend.process == 0 and run_evaluations.is_done(workdir, when)):
        return
    learner.publish(engine)
    checked = check_by_learner(config, backend, engine, prompts, learner)
    answers, examples = answer_questions(
        config, engine, tokenizer, questions, prompts, progress=progress, description=f"evaluation {when}"
    )
    engine.seconds()
    if backend.process == 0:
        run_evaluations.write(workdir, when, answers, examples, checked)


def describe(config: RunConfig) -> str:
    """One paragraph on what a run will do, for `--dry_run` and the log."""
    return (
        f"{config.name}: {config.steps} optimizer steps of {config.grpo.questions_per_step} questions x "
        f"{config.grpo.group_size} completions ({config.grpo.preset} preset, loss {config.grpo.loss}, beta "
        f"{config.grpo.beta}), learning rate {config.optimizer.learning_rate}, seed {config.seed}"
    )
