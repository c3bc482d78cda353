"""A whole run: registry, questions, policy, evaluation, GRPO, evaluation, report. Started again, it goes on where it was.

The work directory of a run:

    config.json            what it was asked for; a different config in the same directory is refused
    inputs.json            digests of questions, raw files and policy; others in their place are refused (preparation/inputs.py)
    prompts.json           how its prompts are rendered, chosen as it began (shared/questions/prompt_style.py)
    replay.json            of which recording it is a replay, where it is one (shared/runs/replay.py), and how far it differs
    data/                  prepared registry and question files, where the run made them
    model/                 a copy of the model directory, where that is in a bucket
    tokenizer/ initial/    a small policy's tokenizer and random weights, where the run made them
    warmup/ policy/        next-token training of that policy, and the policy that GRPO starts from
    evaluation/            answers before and after, examples, engines.json: whose answers, and how it was checked; while
                           one is made, its parts in `before.unfinished`
    metrics.jsonl tensorboard/ trajectories/
    checkpoints/           where the config names no other folder
    trained/               the trained policy as a Hugging Face directory
    summary.json run_page.html plots/main.png
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import Backend, Learner, RolloutEngine, Workload
from shared.config import RunConfig, changed_in_preset, validate, with_compute_dtype
from shared.errors import InputError
from shared.evaluation import figures
from shared.evaluation.answering import Answered, answer_questions
from shared.evaluation.engine_check import check_by_learner, engine_name
from shared.policy import weight_files
from shared.policy.families import MODEL_CONFIG
from shared.policy.initial import write_model
from shared.policy.tokenizer import embedding_rows, load_tokenizer, special_tokens, train_tokenizer
from shared.preparation import inputs, prepare
from shared.preparation.inputs import Inputs
from shared.preparation.vocabulary import training_texts
from shared.questions import prompt_style
from shared.questions.prompts import PREFILL, SYSTEM_PROMPT, PromptStyle, prompt_tokens, user_message
from shared.questions.record import Question, check_apart, check_questions, read_questions, read_words
from shared.questions.turns import end_of_turn_warning
from shared.report import run_page
from shared.runs import evaluations, forecast
from shared.runs.kept import Kept, differences, digest
from shared.storage import buckets, files
from shared.training import loop, published
from shared.training.metrics_log import METRICS_FILE, plain, read_metrics, timings
from shared.training.warmup import warm_up, worked_answer

CONFIG_FILE = "config.json"
REPLAY_FILE = "replay.json"
# By these a work directory is one run's, whether or not it made anything.
BINDING = {CONFIG_FILE, inputs.INPUTS_FILE, prompt_style.PROMPTS_FILE}
POLICY, OWN_POLICY = "model.path", "policy"  # names in inputs.json
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
    "health",
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
    the files, and return an empty one. Raises Stopped where a SIGTERM ends training early. Where it fails before anything is
    made, the work directory is free for another config again.
    """
    claimed: list[Path | str] = []
    try:
        return _run(config, backend, workdir, claimed, progress, show_examples, wandb_project)
    except InputError:
        made = {path.name for path in workdir.glob("*")} - BINDING - {"data"}
        if claimed and not made and not (workdir / "data/questions").exists():
            for place in (*claimed, *(workdir / name for name in sorted(BINDING))):
                if buckets.is_file(place):
                    buckets.remove(place)
        raise


def _run(
    config: RunConfig,
    backend: Backend,
    workdir: Path,
    claimed: list[Path | str],
    progress: bool,
    show_examples: bool,
    wandb_project: str,
) -> dict[str, Any]:
    """See `run`; into `claimed` go the files by which folders become this config's."""
    config = backend.resolved(config)
    first = backend.process == 0
    progress = progress and first
    train_file, valid_file = _question_files(config, workdir)
    checkpoints = checkpoint_folder(config, backend, workdir)
    noted: Inputs | None = None
    if first:
        check_policy(config)
        for path in (train_file, valid_file) if config.data.train else ():
            check_questions(path)
        _check_prompts(config)
        if (workdir / REPLAY_FILE).is_file():
            raise InputError(f"{workdir}: holds a replay; go on with its --replay, or give another --workdir")
        if config.checkpoint.folder and buckets.is_file(buckets.join(checkpoints, REPLAY_FILE)):
            raise InputError(f"{checkpoints}: holds checkpoints of a replay; give another checkpoint.folder")
        noted = claim(config, workdir, *([checkpoints] if config.checkpoint.folder else []), new=claimed)
        inputs.hold_data(config.data, noted)
        if config.data.train:
            check_apart(train_file, valid_file)
        else:
            made = {path.name: path for path in (Path(train_file), Path(valid_file))}
            if all(path.is_file() for path in made.values()):  # else they would be made again in silence
                noted.check("questions", Path(train_file).parent, inputs.of_files(made))
            _make_questions(config, workdir, progress)
            noted.hold("questions", Path(train_file).parent, inputs.of_files(made), own=True)
    backend.barrier()
    _check_shared(config, backend, workdir)
    fetch_policy(config, backend, workdir, noted, progress=progress)
    train_questions, valid_questions = read_questions(train_file), read_questions(valid_file)
    policy, style = _policy(config, backend, workdir, train_questions, noted, progress)
    inputs.check_alike(backend, policy, (train_file, valid_file))
    tokenizer = load_tokenizer(policy)
    stop = special_tokens(tokenizer, policy).stop
    train_questions, train_prompts, cut = _prompts(config, tokenizer, policy, style, train_questions)
    valid_questions, valid_prompts, cut_valid = _prompts(config, tokenizer, policy, style, valid_questions)
    if first:
        told = prompt_style.describe(style, config.model, tokenizer), end_of_turn_warning(tokenizer, stop)
        tqdm.write("\n".join(filter(None, told)))
    if first and (cut or cut_valid):
        what = "lost their beginning" if config.grpo.overlong_prompts == "truncate_left" else "were left out"
        tqdm.write(
            f"warning: {cut:,} training and {cut_valid:,} held-out prompts are longer than rollout.max_prompt_tokens = "
            f"{config.rollout.max_prompt_tokens:,} and {what}; --dry_run says how many tokens the longest has"
        )

    longest = max(map(len, (*train_prompts, *valid_prompts)))
    workload = Workload(prompt_tokens=longest, questions=len(valid_questions))
    if not backend.agreed(first and (workdir / "trained").is_dir()):
        need = backend.need(config, policy, workload, trains=True)
        if first:
            tokens = forecast.tokens_line([*train_prompts, *valid_prompts], config.rollout.max_new_tokens)
            tqdm.write(
                "\n".join([tokens, forecast.memory_line(need.memory), forecast.disk_line(config, need, checkpoints)])
            )
        forecast.refuse(config, need, workload, folder=checkpoints if first else None)
    optimizer, reference = config.optimizer, config.grpo.beta > 0
    learner = backend.learner(config, policy, optimizer=optimizer, steps=config.steps, reference=reference)
    engine = backend.engine(config, policy, stop_tokens=stop, workload=workload)
    parts = (config, backend, learner, engine, tokenizer, workdir, valid_questions, valid_prompts, progress)
    with evaluations.dropped_with(engine_name(backend, engine), workdir, first=first):
        _evaluate("before", *parts)
        source = loop.Sampled(config, engine, tokenizer, train_questions, train_prompts, backend.agreed)
        loop.train(
            config, learner, source, workdir, checkpoints=checkpoints,
            first=first, agreed=backend.agreed, progress=progress, wandb_project=wandb_project,
        )  # fmt: skip
        learner.finish_saves()
        if not backend.agreed(first and (workdir / "trained").is_dir()):
            prompt_style.export(learner, workdir / "trained", style, first=first)
        _evaluate("after", *parts)
    found = summarise(config, workdir, valid_questions, backend.name, show_examples=show_examples) if first else {}
    backend.barrier()
    return found


def summarise(
    config: RunConfig, workdir: Path, questions: Sequence[Question], backend: str, *, show_examples: bool
) -> dict[str, Any]:
    """Write `summary.json` and the report from what the run left in its work directory."""
    before, after = (figures.read_answers(evaluations.answers_file(workdir, when)) for when in evaluations.WHEN)
    found = figures.summary(
        config.name,
        questions,
        before,
        after,
        config=config,
        timings=timings(read_metrics(workdir / METRICS_FILE)),
        environment=environment(backend),
    )
    style = prompt_style.recorded(config, workdir)
    found["prompts"] = None if style is None else dataclasses.asdict(style)
    files.write_json(workdir / run_page.SUMMARY_FILE, found)
    allowed = run_page.examples_allowed(found["config"], show_examples)
    run_page.write_report(workdir, show_examples=allowed)
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


def as_begun(config: RunConfig, workdir: Path) -> RunConfig:
    """The config with `learner.compute_dtype` as the run in this work directory began, where it says auto."""
    path = workdir / CONFIG_FILE
    return as_in(config, read_config(path)) if path.is_file() else config


def as_in(config: RunConfig, held: RunConfig) -> RunConfig:
    """The config with `learner.compute_dtype` as in `held`, where it says auto."""
    dtype = held.learner.compute_dtype
    return config if dtype == "auto" else with_compute_dtype(config, dtype)


def claim(config: RunConfig, workdir: Path, *others: Path | str, new: list[Path | str] | None = None) -> Inputs:
    """Make the work directory and other folders this config's, or see that they are, but for `MAY_CHANGE`.

    Returns what is noted there of the run's inputs. To `new` are added the files written where there was none.
    """
    outdated, begun = [], any(buckets.is_file(buckets.join(folder, CONFIG_FILE)) for folder in (workdir, *others))
    for folder in (workdir, *others):
        place = buckets.join(folder, CONFIG_FILE)
        changed = check_config(config, folder, "--workdir" if folder == workdir else "checkpoint.folder")
        if changed is None and new is not None:
            new += [place, *([buckets.join(folder, inputs.INPUTS_FILE)] if folder != workdir else [])]
        if changed != []:
            outdated.append(place)
    noted = Inputs(workdir, *others, begun=begun)
    for place in reversed(outdated):  # the work directory last: a bucket may refuse
        buckets.write_json(place, plain(dataclasses.asdict(config)))
    return noted


def check_config(config: RunConfig, folder: Path | str, field: str) -> list[str] | None:
    """The fields in which `config` differs from that of the run in a folder; None where no run is in it.

    Raises InputError where one of them is not in `MAY_CHANGE`. `field` is what names the folder.
    """
    place = buckets.join(folder, CONFIG_FILE)
    if not buckets.is_file(place):
        return None
    changed = changed_fields(read_config(place), config)
    if not all(may_change(name, MAY_CHANGE) for name in changed):
        raise InputError(
            f"{folder}: holds a run with another config (it differs in {', '.join(changed[:5])}); give another {field}, "
            "or remove that one"
        )
    return changed


def read_config(path: Path | str) -> RunConfig:
    """The config of a run. A field that is younger than the run has its default."""
    try:
        return validate(buckets.read_json(path))
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
    if not buckets.is_address(folder):
        return Path(folder)
    if not backend.checkpoints_in_buckets:
        raise InputError(
            f"checkpoint.folder = {folder!r}: the {backend.name} backend writes no checkpoints to a bucket; give a folder "
            "that all processes see"
        )
    return folder


def _check_shared(config: RunConfig, backend: Backend, workdir: Path) -> None:
    """Where nothing needs one work directory for all processes, each may have its own."""
    apart = bool(config.data.train and config.model.path and config.checkpoint.folder)
    check_shared(
        backend, workdir, apart=apart, otherwise="give data.train, data.valid, model.path and checkpoint.folder"
    )


def check_shared(backend: Backend, workdir: Path, *, apart: bool, otherwise: str) -> None:
    """Raise InputError where this process needs what process 0 wrote and does not see it.

    `apart`: each may have a work directory of its own; `otherwise` says how to come there.
    """
    if backend.process > 0 and not apart and not (workdir / CONFIG_FILE).is_file():
        raise InputError(
            f"{workdir}: process {backend.process} does not see what process 0 wrote there; put the work directory on a "
            f"file system that all share, or {otherwise}"
        )


def _question_files(config: RunConfig, workdir: Path) -> tuple[Path | str, Path | str]:
    if config.data.train:
        return config.data.train, config.data.valid
    questions = workdir / "data" / "questions"
    return questions / "train.parquet", questions / "valid.parquet"


def _make_questions(config: RunConfig, workdir: Path, progress: bool) -> None:
    if not config.data.train:
        prepare.prepare(config.data, workdir / "data", seed=config.seed, progress=progress)


def check_policy(config: RunConfig) -> None:
    """Say at once that the model is not there or not whole, before anything is made."""
    if config.model.path and not buckets.is_file(buckets.join(config.model.path, MODEL_CONFIG)):
        raise InputError(
            f"model.path = {config.model.path!r}: no config.json there; give a Hugging Face model directory"
        )
    if config.model.path and not buckets.is_address(config.model.path):
        weight_files.places(Path(config.model.path))


def _check_prompts(config: RunConfig) -> None:
    """Say at once what the model's tokenizer cannot do, where the model is here already."""
    if config.model.path and not buckets.is_address(config.model.path):
        folder = Path(config.model.path)
        tokenizer = load_tokenizer(folder)
        special_tokens(tokenizer, folder)
        prompt_style.choose(config.model, folder, tokenizer)


def policy_folder(config: RunConfig, workdir: Path) -> Path:
    """The model directory that GRPO starts from: the one named, its copy in this work directory, or the small one made in it."""
    if config.model.path:
        return workdir / "model" if buckets.is_address(config.model.path) else Path(config.model.path)
    return workdir / ("policy" if config.warmup.steps else "initial")


def fetch_policy(
    config: RunConfig, backend: Backend, workdir: Path, noted: Inputs | None = None, *, progress: bool
) -> None:
    """Copy a model directory that is in a bucket into the work directory, once where processes share it.

    Every process calls it. Process 0 copies first, so that the others copy only where they do not see what it made; it is given
    what is `noted` of the run's inputs. Raises InputError where the model that is named is not the one that is noted.
    """
    if not config.model.path:
        return
    folder, address = policy_folder(config, workdir), config.model.path
    if not buckets.is_address(address):
        if noted is not None:
            noted.hold(POLICY, folder, inputs.of_model(folder, progress=progress))
        return
    for turn in (backend.process == 0, backend.process > 0):
        if turn:
            marks = None if folder.is_dir() or noted is None else buckets.checksums(address)
            buckets.fetch_model(address, folder, progress=progress)
            if noted is not None:
                noted.hold_copy(POLICY, address, folder, inputs.of_model(folder, progress=progress), marks)
        backend.barrier()


def check_inputs(config: RunConfig, workdir: Path, policy: Path) -> None:
    """Raise InputError where the policy that a run was begun with is no longer in the folder `policy` as it was."""
    noted, name = Inputs(workdir), POLICY if config.model.path else OWN_POLICY
    if noted.noted(name):
        noted.check(name, policy, inputs.of_model(policy, progress=None))


def _policy(
    config: RunConfig,
    backend: Backend,
    workdir: Path,
    questions: Sequence[Question],
    noted: Inputs | None,
    progress: bool,
) -> tuple[Path, PromptStyle]:
    """The model directory that GRPO starts from, made here unless it is named, and how its prompts are rendered."""
    policy = policy_folder(config, workdir)
    if config.model.path:
        return policy, prompt_style.of_run(config, backend, workdir, policy)
    tokenizer, initial = workdir / "tokenizer", workdir / "initial"
    if backend.process == 0:
        words = read_words(_question_files(config, workdir)[0])
        _make_initial(config, questions, tokenizer, initial, words)
    backend.barrier()
    style = prompt_style.of_run(config, backend, workdir, initial)
    if backend.process == 0:
        prompt_style.write(initial, style)  # and so beside whatever is made of it
    if not backend.agreed(policy.is_dir()):  # without a warm-up it is `initial`
        warm_up(
            config,
            backend,
            initial,
            load_tokenizer(tokenizer),
            questions,
            policy,
            workdir,
            style=style,
            progress=progress,
        )
    if noted is not None:
        noted.hold(OWN_POLICY, policy, inputs.of_model(policy), own=True)
    return policy, style


def _prompts(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    policy: Path,
    style: PromptStyle,
    questions: Sequence[Question],
) -> tuple[list[Question], list[np.ndarray], int]:
    """See `shared.questions.prompts.prompt_tokens`."""
    return prompt_tokens(
        tokenizer, questions, style=style, rows=embedding_rows(policy),
        max_tokens=config.rollout.max_prompt_tokens, overlong=config.grpo.overlong_prompts,
    )  # fmt: skip


def make_tokenizer(
    config: RunConfig, questions: Sequence[Question], tokenizer: Path, words: Sequence[str] | None
) -> None:
    """A tokenizer for these questions, trained on no patient's own text."""
    prefill = PREFILL if config.model.prefill == prompt_style.AUTO else config.model.prefill
    texts = (
        text
        for q in training_texts(questions, words)
        for text in (*ROLES, SYSTEM_PROMPT, user_message(q), prefill, worked_answer(q))
    )
    train_tokenizer(texts, config.model.vocab_size, tokenizer)


def _make_initial(
    config: RunConfig, questions: Sequence[Question], tokenizer: Path, initial: Path, words: Sequence[str] | None = None
) -> None:
    """A tokenizer for these questions, and random weights with its vocabulary."""
    if not tokenizer.is_dir():
        make_tokenizer(config, questions, tokenizer, words)
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
    if backend.agreed(backend.process == 0 and evaluations.is_done(workdir, when)):
        return
    published.publish(learner, engine, agreed=backend.agreed)
    checked = check_by_learner(config, backend, engine, prompts, learner)
    kept = _unfinished(when, config, backend, workdir, questions, prompts)
    begin, count = time.perf_counter(), len(questions) - kept.done
    for part in answer_questions(
        config,
        engine,
        tokenizer,
        questions,
        prompts,
        done=kept.done,
        progress=progress,
        description=f"evaluation {when}",
    ):
        kept.add([each.to_row() for each in part])
    engine.seconds()
    if backend.process > 0:
        return
    checked |= {"seconds": time.perf_counter() - begin, "questions": count}
    answered = [Answered.from_row(row) for row in kept.rows]
    evaluations.write(
        workdir,
        when,
        [each.answer for each in answered],
        [each.text for each in answered if each.text is not None],
        checked,
    )
    files.remove(kept.folder)


def _unfinished(
    when: str,
    config: RunConfig,
    backend: Backend,
    workdir: Path,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
) -> Kept:
    """The answers that an interrupted start of this evaluation left; without those that another engine gave."""
    folder = workdir / "evaluation" / f"{when}.unfinished"
    request = {
        "questions": digest(dataclasses.asdict(question) for question in questions),
        "prompts": digest(prompt.tolist() for prompt in prompts),
        "max_new_tokens": config.evaluation.max_new_tokens or config.rollout.max_new_tokens,
        "compute_dtype": config.learner.compute_dtype,
        "engine": backend.engine_kind(config),
    }
    changed = differences(folder, request) if backend.process == 0 else []
    if changed:
        tqdm.write(f"evaluation {when}: begun with other {', '.join(changed)}; it starts again from its first question")
        files.remove(folder)
    return Kept(folder, request, backend)


def describe(config: RunConfig) -> str:
    """One paragraph on what a run will do, for `--dry_run` and the log."""
    changed = changed_in_preset(config.grpo)
    preset = f"{config.grpo.preset} preset" + (f" changed in: {', '.join(changed)}" if changed else "")
    return (
        f"{config.name}: {config.steps} optimizer steps of {config.grpo.questions_per_step} questions x "
        f"{config.grpo.group_size} completions ({preset}; loss {config.grpo.loss}, beta "
        f"{config.grpo.beta}), learning rate {config.optimizer.learning_rate}, seed {config.seed}"
    )
