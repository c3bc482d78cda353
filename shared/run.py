"""A whole run: registry, questions, policy, evaluation, GRPO, evaluation, report. Started again, it goes on where it was.

The work directory of a run:

    config.json            what it was asked for; a different config in the same directory is refused
    replay.json            of which recording it is a replay, where it is one (shared/replay.py), and how far it differs
    data/                  prepared registry and question files, where the run made them
    tokenizer/ initial/    a small policy's tokenizer and random weights, where the run made them
    warmup/ policy/        next-token training of that policy, and the policy that GRPO starts from
    evaluation/            answers before and after, examples
    checkpoints/ metrics.jsonl tensorboard/ trajectories/
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

from shared import evaluation, files, preparation, report, training
from shared.answering import answer_questions
from shared.backend import Backend, Learner, RolloutEngine
from shared.config import RunConfig, validate
from shared.errors import InputError
from shared.initial import write_model
from shared.metrics import METRICS_FILE, plain, read_metrics, timings
from shared.prompts import PREFILL, SYSTEM_PROMPT, prompt_tokens, user_message
from shared.questions import Question, read_questions
from shared.tokenizer import load_tokenizer, special_tokens, train_tokenizer
from shared.warmup import warm_up, worked_answer

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

    Every process of a run calls it. Process 0 writes the files; the others wait where they need them, and get the
    summary too. Raises Stopped where a SIGTERM ends training early.
    """
    first = backend.process == 0
    progress = progress and first
    train_file, valid_file = _question_files(config, workdir)
    if first:
        check_policy(config)
        if (workdir / REPLAY_FILE).is_file():
            raise InputError(f"{workdir}: holds a replay; go on with its --replay, or give another --workdir")
        claim(config, workdir)
        _make_questions(config, workdir, progress)
    backend.barrier()
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
    _evaluate("before", *parts)
    source = training.Sampled(config, engine, tokenizer, train_questions, train_prompts)
    training.train(
        config, learner, source, workdir,
        first=first, agreed=backend.agreed, progress=progress, wandb_project=wandb_project,
    )  # fmt: skip
    learner.finish_saves()
    if not backend.agreed((workdir / "trained").is_dir()):
        learner.export(workdir / "trained")
    _evaluate("after", *parts)
    if first:
        summarise(config, workdir, valid_questions, backend.name, show_examples=show_examples)
    backend.barrier()
    return files.read_json(workdir / report.SUMMARY_FILE)


def summarise(
    config: RunConfig, workdir: Path, questions: Sequence[Question], backend: str, *, show_examples: bool
) -> dict[str, Any]:
    """Write `summary.json` and the report from what the run left in its work directory."""
    before, after = (evaluation.read_answers(_answers(workdir, when)) for when in ("before", "after"))
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


def claim(config: RunConfig, workdir: Path) -> None:
    """Make the work directory this config's, or see that it is, but for `MAY_CHANGE`."""
    path = workdir / "config.json"
    if not path.is_file():
        files.write_json(path, plain(dataclasses.asdict(config)))
        return
    changed = changed_fields(read_config(path), config)
    if changed and all(may_change(name, MAY_CHANGE) for name in changed):
        files.write_json(path, plain(dataclasses.asdict(config)))
    elif changed:
        raise InputError(
            f"{workdir}: holds a run with another config (it differs in {', '.join(changed[:5])}); give another --workdir, "
            "or remove that one"
        )


def read_config(path: Path) -> RunConfig:
    """The config of a run. A field that is younger than the run has its default."""
    try:
        return validate(files.read_json(path))
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


def _question_files(config: RunConfig, workdir: Path) -> tuple[Path, Path]:
    if config.data.train:
        return Path(config.data.train), Path(config.data.valid)
    questions = workdir / "data" / "questions"
    return questions / "train.parquet", questions / "valid.parquet"


def _make_questions(config: RunConfig, workdir: Path, progress: bool) -> None:
    if not config.data.train:
        preparation.prepare(config.data, workdir / "data", seed=config.seed, progress=progress)


def check_policy(config: RunConfig) -> None:
    """Say at once that the model is not there, before anything is made."""
    if config.model.path and not (Path(config.model.path) / "config.json").is_file():
        raise InputError(
            f"model.path = {config.model.path!r}: no config.json there; give a Hugging Face model directory"
        )


def policy_folder(config: RunConfig, workdir: Path) -> Path:
    """The model directory that GRPO starts from in this work directory: the one named, or the small one made in it."""
    if config.model.path:
        return Path(config.model.path)
    return workdir / ("policy" if config.warmup.steps else "initial")


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


def _answers(workdir: Path, when: str) -> Path:
    return workdir / "evaluation" / f"{when}.parquet"


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
    path = _answers(workdir, when)
    # Agreed: a shared file system may show a file to one process earlier than to another.
    if backend.agreed(path.is_file()):
        return
    learner.publish(engine)
    answers, examples = answer_questions(
        config, engine, tokenizer, questions, prompts, progress=progress, description=f"evaluation {when}"
    )
    engine.seconds()
    if backend.process > 0:
        return
    shown = workdir / "evaluation" / "examples.json"
    earlier = files.read_json(shown) if shown.is_file() else []
    kept = [example for example in earlier if example["when"] != when]
    files.write_json(shown, kept + [{**example, "when": when} for example in examples])
    evaluation.write_answers(path, answers)


def describe(config: RunConfig) -> str:
    """One paragraph on what a run will do, for `--dry_run` and the log."""
    return (
        f"{config.name}: {config.steps} optimizer steps of {config.grpo.questions_per_step} questions x "
        f"{config.grpo.group_size} completions ({config.grpo.preset} preset, loss {config.grpo.loss}, beta "
        f"{config.grpo.beta}), learning rate {config.optimizer.learning_rate}, seed {config.seed}"
    )
