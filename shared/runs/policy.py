"""The policy that a run starts from: the model that the config names, its copy from a bucket, or a small one made by the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.config import RunConfig
from shared.errors import InputError
from shared.policy import weight_files
from shared.policy.families import MODEL_CONFIG
from shared.policy.initial import write_model
from shared.policy.tokenizer import load_tokenizer, special_tokens, train_tokenizer
from shared.preparation import inputs
from shared.preparation.inputs import Inputs
from shared.preparation.vocabulary import training_texts
from shared.questions import prompt_style
from shared.questions.prompts import PREFILL, SYSTEM_PROMPT, PromptStyle
from shared.questions.record import Question, read_words
from shared.runs.workdir import Job
from shared.storage import buckets, files
from shared.tasks.prompts import user_message
from shared.training.warmup import warm_up, worked_answer

GIVEN_POLICY, OWN_POLICY = "model.path", "policy"  # names in inputs.json
ROLES = ("system", "user", "assistant")


def check_policy(config: RunConfig) -> None:
    """Raise InputError where the model that is named is not there, or not whole. Called before anything is made."""
    if config.model.path and not buckets.is_file(buckets.join(config.model.path, MODEL_CONFIG)):
        raise InputError(
            f"model.path = {config.model.path!r}: no config.json there; give a Hugging Face model directory"
        )
    if config.model.path and not buckets.is_address(config.model.path):
        weight_files.places(Path(config.model.path))


def check_prompts(config: RunConfig) -> None:
    """Raise InputError where the model's tokenizer cannot do what the config asks of prompts. A model in a bucket is not read."""
    if config.model.path and not buckets.is_address(config.model.path):
        folder = Path(config.model.path)
        tokenizer = load_tokenizer(folder)
        special_tokens(tokenizer, folder)
        prompt_style.choose(config.model, folder, tokenizer)


def check_policy_unchanged(config: RunConfig, workdir: Path, policy: Path) -> None:
    """Raise InputError where the model in the folder `policy` is not the one that the run was begun with."""
    noted, name = Inputs(workdir), GIVEN_POLICY if config.model.path else OWN_POLICY
    if noted.noted(name):
        noted.check(name, policy, inputs.of_model(policy, progress=None))


def policy_folder(config: RunConfig, workdir: Path) -> Path:
    """The model directory that GRPO starts from: the one named, its copy in the work directory, or the small one made in it."""
    if config.model.path:
        return workdir / "model" if buckets.is_address(config.model.path) else Path(config.model.path)
    return workdir / ("policy" if config.warmup.steps else "initial")


def fetch_policy(job: Job, noted: Inputs | None = None) -> None:
    """Copy a model directory that is in a bucket into the work directory, once where processes share it.

    Every process calls it. Process 0 copies first; the others copy only where they do not see its copy. `noted` are the
    digests of the run's inputs, which process 0 has. Raises InputError where the model that is named is not the one noted.
    """
    if not job.config.model.path:
        return
    folder, address = policy_folder(job.config, job.workdir), job.config.model.path
    if not buckets.is_address(address):
        if noted is not None:
            noted.hold(GIVEN_POLICY, folder, inputs.of_model(folder, progress=job.progress))
        return
    for my_turn in (job.writes, not job.writes):
        if my_turn:
            checksums = None if folder.is_dir() or noted is None else buckets.checksums(address)
            buckets.fetch_model(address, folder, progress=job.progress)
            if noted is not None:
                digests = inputs.of_model(folder, progress=job.progress)
                noted.hold_copy(GIVEN_POLICY, address, folder, digests, checksums)
        job.backend.barrier()


def make_policy(job: Job, questions: Sequence[Question], noted: Inputs | None) -> tuple[Path, PromptStyle]:
    """The model directory that GRPO starts from, and how its prompts are rendered.

    A model that is named is taken as it is. Else a tokenizer for `questions` and random weights are made, and trained on next
    tokens for `warmup.steps`, as far as an earlier start has not done so. Every process calls it.
    """
    config, backend, workdir = job.config, job.backend, job.workdir
    policy = policy_folder(config, workdir)
    if config.model.path:
        return policy, prompt_style.of_run(config, backend, workdir, policy)
    tokenizer, initial = workdir / "tokenizer", workdir / "initial"
    if job.writes:
        make_initial(config, questions, tokenizer, initial, words=read_words(job.question_files[0]))
    backend.barrier()
    style = prompt_style.of_run(config, backend, workdir, initial)
    if job.writes:
        prompt_style.write(initial, style)  # every model made from it gets a copy
    if not backend.any_process(policy.is_dir()):  # without a warm-up it is `initial`, which is there
        warm_up(
            config, backend, initial, load_tokenizer(tokenizer), questions, policy, workdir,
            style=style, progress=job.progress,
        )  # fmt: skip
    if noted is not None:
        noted.hold(OWN_POLICY, policy, inputs.of_model(policy), own=True)
    return policy, style


def make_tokenizer(config: RunConfig, questions: Sequence[Question], folder: Path, words: Sequence[str] | None) -> None:
    """Train a tokenizer for these questions, on no patient's own text, and write it to `folder`.

    `words` are those that it may learn, as the question file lists them (`shared.questions.record.read_words`); None: it lists
    none, and those that enough patients share are taken (`shared.preparation.vocabulary`).
    """
    prefill = PREFILL if config.model.prefill == prompt_style.AUTO else config.model.prefill
    texts = (
        text
        for question in training_texts(questions, words)
        for text in (*ROLES, SYSTEM_PROMPT, user_message(question), prefill, worked_answer(question))
    )
    train_tokenizer(texts, config.model.vocab_size, folder)


def make_initial(
    config: RunConfig, questions: Sequence[Question], tokenizer: Path, initial: Path, *, words: Sequence[str] | None
) -> None:
    """A tokenizer for these questions (folder `tokenizer`), and random weights with its vocabulary (folder `initial`).

    A folder that is there is left as it is. `words`: see `make_tokenizer`.
    """
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
