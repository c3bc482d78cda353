"""A whole run: registry, questions, policy, evaluation, GRPO, evaluation, report. Started again, it goes on where it was.

The work directory of a run:

    config.json            what it was asked for; a different config in the same directory is refused
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
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared import evaluation, files, preparation, report, training
from shared.answering import answer_questions
from shared.backend import Backend, Learner, RolloutEngine
from shared.config import RunConfig
from shared.errors import InputError
from shared.metrics import METRICS_FILE, plain, read_metrics, timings
from shared.prompts import PREFILL, SYSTEM_PROMPT, prompt_tokens, user_message
from shared.questions import Question, read_questions
from shared.tokenizer import load_tokenizer, special_tokens, train_tokenizer
from shared.warmup import warm_up, worked_answer

ROLES = ("system", "user", "assistant")
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
    """Do what is not done yet and return the summary. Raises InputError for a work directory of another config."""
    _claim(config, workdir)
    train_file, valid_file = _question_files(config, workdir, progress)
    train_questions, valid_questions = read_questions(train_file), read_questions(valid_file)
    policy = _policy(config, backend, workdir, train_questions, progress)
    tokenizer = load_tokenizer(policy)
    stop = special_tokens(tokenizer, policy).stop
    limit, overlong = config.rollout.max_prompt_tokens, config.grpo.overlong_prompts
    train_questions, train_prompts, cut = prompt_tokens(tokenizer, train_questions, max_tokens=limit, overlong=overlong)
    valid_questions, valid_prompts, cut_valid = prompt_tokens(
        tokenizer, valid_questions, max_tokens=limit, overlong=overlong
    )
    if cut or cut_valid:
        what = "lost their beginning" if config.grpo.overlong_prompts == "truncate_left" else "were left out"
        tqdm.write(f"{cut} training and {cut_valid} held-out prompts were too long and {what}")

    optimizer, reference = config.optimizer, config.grpo.beta > 0
    learner = backend.learner(config, policy, optimizer=optimizer, steps=config.steps, reference=reference)
    engine = backend.engine(config, policy, stop_tokens=stop)
    parts = (config, learner, engine, tokenizer, workdir, valid_questions, valid_prompts, progress)
    _evaluate("before", *parts)
    training.train(
        config, learner, engine, tokenizer, train_questions, train_prompts, workdir,
        progress=progress, wandb_project=wandb_project,
    )  # fmt: skip
    learner.finish_saves()
    if not (workdir / "trained").is_dir():
        learner.export(workdir / "trained")
    _evaluate("after", *parts)
    return summarise(config, workdir, valid_questions, backend.name, show_examples=show_examples)


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


def _claim(config: RunConfig, workdir: Path) -> None:
    """Make the work directory this config's, or see that it is."""
    path, wanted = workdir / "config.json", plain(dataclasses.asdict(config))
    if not path.is_file():
        files.write_json(path, wanted)
        return
    held = files.read_json(path)
    if not isinstance(held, dict):
        raise InputError(f"{path}: not the config of a run; give another --workdir")
    changed = [
        f"{section}.{field}" if field else section
        for section, value in wanted.items()
        for field in (value if isinstance(value, dict) and isinstance(held.get(section), dict) else [""])
        if (held[section].get(field) != value[field] if field else held.get(section) != value)
    ]
    if changed:
        raise InputError(
            f"{workdir}: holds a run with another config (it differs in {', '.join(changed[:5])}); give another --workdir, "
            "or remove that one"
        )


def _question_files(config: RunConfig, workdir: Path, progress: bool) -> tuple[Path, Path]:
    if config.data.train:
        return Path(config.data.train), Path(config.data.valid)
    data = workdir / "data"
    preparation.prepare(config.data, data, seed=config.seed, progress=progress)
    return data / "questions" / "train.parquet", data / "questions" / "valid.parquet"


def _policy(config: RunConfig, backend: Backend, workdir: Path, questions: Sequence[Question], progress: bool) -> Path:
    """The model directory that GRPO starts from: the one named, or a small one made here."""
    if config.model.path:
        return Path(config.model.path)
    tokenizer, initial, policy = workdir / "tokenizer", workdir / "initial", workdir / "policy"
    if not tokenizer.is_dir():
        texts = (
            text for q in questions for text in (*ROLES, SYSTEM_PROMPT, user_message(q), PREFILL, worked_answer(q))
        )
        train_tokenizer(texts, config.model.vocab_size, tokenizer)
    if not initial.is_dir():
        backend.initialise(config, tokenizer, initial)
    if not config.warmup.steps:
        return initial
    if not policy.is_dir():
        warm_up(config, backend, initial, load_tokenizer(tokenizer), questions, policy, workdir, progress=progress)
    return policy


def _answers(workdir: Path, when: str) -> Path:
    return workdir / "evaluation" / f"{when}.parquet"


def _evaluate(
    when: str,
    config: RunConfig,
    learner: Learner,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    workdir: Path,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    progress: bool,
) -> None:
    path = _answers(workdir, when)
    if path.is_file():
        return
    learner.publish(engine)
    answers, examples = answer_questions(
        config, engine, tokenizer, questions, prompts, progress=progress, description=f"evaluation {when}"
    )
    engine.seconds()
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
