"""The work directory of a run: what is in it, and which config it belongs to.

A work directory, and a folder of checkpoints, belongs to one config. In a work directory are:

    config.json            the config of the run; another config in the same directory is refused
    inputs.json            digests of questions, raw files and policy; other files in their place are refused
                           (shared/preparation/inputs.py)
    prompts.json           how its prompts are rendered, chosen when it began (shared/questions/prompt_style.py)
    replay.json            only where the run is a replay: of which recording, and how far its metrics are from the recorded ones
                           (shared/runs/replay.py)
    data/                  prepared registry and question files, where the run made them
    model/                 a copy of the model directory, where that is in a bucket
    tokenizer/ initial/    a small policy's tokenizer and random weights, where the run made them
    warmup/ policy/        metrics of the next-token training of that policy, and the policy that GRPO starts from
    evaluation/            answers before and after training, examples, and engines.json: which engine answered, and how it was
                           checked. An evaluation that is not finished has its parts in `before.unfinished`
    metrics.jsonl tensorboard/ trajectories/
    checkpoints/           where the config names no other folder
    trained/               the trained policy as a Hugging Face directory
    summary.json report.html plots/main.png
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from tqdm import tqdm

from shared.backend import Backend
from shared.config import CONFIG_FILE, RENAMED, RunConfig, old_names, validate_stored, with_compute_dtype
from shared.errors import InputError
from shared.preparation import inputs
from shared.preparation.inputs import Inputs
from shared.questions import prompt_style
from shared.storage import buckets
from shared.training.loop import Output
from shared.training.metrics_log import plain

REPLAY_FILE = "replay.json"
# These files say whose a work directory is. Process 0 writes them before it makes anything else.
OWNER_FILES = {CONFIG_FILE, inputs.INPUTS_FILE, prompt_style.PROMPTS_FILE}
# The fields that may change when a run goes on: they say how it is computed and when it is stopped, not what is computed.
MAY_CHANGE = {
    "torch",
    "learner.micro_batch_rows",
    "learner.remat",
    "jax.reference_memory",
    "learner.logprob_chunk",
    "jax.mesh_data",
    "jax.mesh_fsdp",
    "jax.mesh_tensor",
    "jax.sequence_parallel",
    "jax.rollout_mesh_tensor",
    "health",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What every part of a run needs to know. It does not change while the run goes on."""

    config: RunConfig
    backend: Backend
    workdir: Path
    checkpoints: Path | str  # folder, or address in a bucket
    progress: bool  # whether this process shows progress bars

    @classmethod
    def of(cls, config: RunConfig, backend: Backend, workdir: Path, *, progress: bool) -> Job:
        """A run with `config` in `workdir`. Of several processes only process 0 shows progress bars.

        Raises InputError where the config names a bucket for checkpoints and the backend cannot write to one.
        """
        config = backend.resolved(config)
        checkpoints = checkpoint_folder(config, backend, workdir)
        return cls(config, backend, workdir, checkpoints, progress and backend.process == 0)

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of the run: process 0 does."""
        return self.backend.process == 0

    @property
    def other_folders(self) -> list[Path | str]:
        """The folder of checkpoints, where it is not in the work directory. It belongs to the run, too."""
        return [self.checkpoints] if self.config.checkpoint.folder else []

    @property
    def question_files(self) -> tuple[Path | str, Path | str]:
        """The files of training questions and of held-out questions."""
        return question_files(self.config, self.workdir)

    @property
    def trained(self) -> Path:
        """Where the trained policy goes."""
        return self.workdir / "trained"

    def output(self, wandb_project: str) -> Output:
        """Where the training loop of this run writes."""
        return Output(
            workdir=self.workdir, checkpoints=self.checkpoints, writes=self.writes,
            any_process=self.backend.any_process, progress=self.progress, wandb_project=wandb_project,
        )  # fmt: skip

    def is_trained(self) -> bool:
        """Whether the trained policy is there, as process 0 sees it. Every process calls it."""
        return self.backend.any_process(self.writes and self.trained.is_dir())


def question_files(config: RunConfig, workdir: Path) -> tuple[Path | str, Path | str]:
    """The files of training questions and of held-out questions: those that the config names, or those that the run makes."""
    if config.data.train:
        return config.data.train, config.data.valid
    questions = workdir / "data" / "questions"
    return questions / "train.parquet", questions / "valid.parquet"


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


def claim(config: RunConfig, workdir: Path, *others: Path | str, new_files: list[Path | str] | None = None) -> Inputs:
    """Make the work directory and other folders this config's; returns the digests that are noted there of the run's inputs.

    A folder that has a config already keeps it, but for fields in `MAY_CHANGE`; InputError where another field differs.
    The names of files that say whose a folder is are added to `new_files`, where the folder had none.
    """
    outdated = []
    begun = any(buckets.is_file(buckets.join(folder, CONFIG_FILE)) for folder in (workdir, *others))
    for folder in (workdir, *others):
        config_file = buckets.join(folder, CONFIG_FILE)
        changed = check_config(config, folder, "--workdir" if folder == workdir else "checkpoint.folder")
        if changed is None and new_files is not None:
            new_files += [config_file, *([buckets.join(folder, inputs.INPUTS_FILE)] if folder != workdir else [])]
        renamed = [] if changed is None else old_names(buckets.read_json(config_file))
        if renamed:
            tqdm.write(
                f"{config_file}: {renamed[0]} is now {RENAMED[renamed[0]]}; the file gets the new names of such fields"
            )
        if changed != [] or renamed:
            outdated.append(config_file)
    noted = Inputs(workdir, *others, begun=begun)
    for config_file in reversed(outdated):  # the work directory last: writing to a bucket may be refused
        buckets.write_json(config_file, plain(dataclasses.asdict(config)))
    return noted


def release(workdir: Path, new_files: Sequence[Path | str]) -> None:
    """Let another config have the work directory again, after a start that failed before it made anything.

    `new_files` are those of `claim`; without any, the directory was another start's before, and stays so.
    """
    made = {path.name for path in workdir.glob("*")} - OWNER_FILES - {"data"}
    if not new_files or made or (workdir / "data/questions").exists():
        return
    for place in (*new_files, *(workdir / name for name in sorted(OWNER_FILES))):
        if buckets.is_file(place):
            buckets.remove(place)


def check_config(config: RunConfig, folder: Path | str, field: str) -> list[str] | None:
    """The fields in which `config` differs from that of the run in a folder; None where no run is in it.

    Raises InputError where one of them is not in `MAY_CHANGE`. `field` is the flag or field that names the folder.
    """
    config_file = buckets.join(folder, CONFIG_FILE)
    if not buckets.is_file(config_file):
        return None
    changed = changed_fields(read_config(config_file), config)
    if not all(is_named(name, MAY_CHANGE) for name in changed):
        raise InputError(
            f"{folder}: holds a run with another config (it differs in {', '.join(changed[:5])}); give another {field}, "
            "or remove that one"
        )
    return changed


def check_no_replay(job: Job) -> None:
    """Raise InputError where the folders of a run are those of a replay."""
    if (job.workdir / REPLAY_FILE).is_file():
        raise InputError(f"{job.workdir}: holds a replay; go on with its --replay, or give another --workdir")
    for folder in job.other_folders:
        if buckets.is_file(buckets.join(folder, REPLAY_FILE)):
            raise InputError(f"{folder}: holds checkpoints of a replay; give another checkpoint.folder")


def check_shared(backend: Backend, workdir: Path, *, own_workdirs: bool, fix: str) -> None:
    """Raise InputError where this process needs what process 0 wrote and does not see it.

    `own_workdirs`: each process may have a work directory of its own. `fix` says which fields to set so that it may.
    """
    if backend.process > 0 and not own_workdirs and not (workdir / CONFIG_FILE).is_file():
        raise InputError(
            f"{workdir}: process {backend.process} does not see what process 0 wrote there; put the work directory on a "
            f"file system that all share, or {fix}"
        )


def read_config(path: Path | str) -> RunConfig:
    """The config of a run. A field that the run's file lacks has its default; a renamed field has its value."""
    try:
        return validate_stored(buckets.read_json(path))
    except InputError as error:
        raise InputError(f"{path}: not the config of a run of this version ({error}); give another --workdir") from None


def with_dtype_of_workdir(config: RunConfig, workdir: Path) -> RunConfig:
    """The config; where `learner.compute_dtype` is auto, with the one that the run in this work directory began with."""
    path = workdir / CONFIG_FILE
    return with_dtype_of(config, read_config(path)) if path.is_file() else config


def with_dtype_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """The config; where `learner.compute_dtype` is auto, with that of the `other` config."""
    dtype = other.learner.compute_dtype
    return config if dtype == "auto" else with_compute_dtype(config, dtype)


def changed_fields(before: RunConfig, now: RunConfig) -> list[str]:
    """Names (`seed`, `grpo.beta`) of the fields in which two configs differ."""
    old, new = plain(dataclasses.asdict(before)), plain(dataclasses.asdict(now))
    return [
        f"{section}.{field}" if field else section
        for section, value in new.items()
        for field in (value if isinstance(value, dict) else [""])
        if (old[section][field] != value[field] if field else old[section] != value)
    ]


def is_named(field: str, names: AbstractSet[str]) -> bool:
    """Whether `names` has this field (`learner.remat`) or its whole section (`learner`)."""
    return field in names or field.split(".")[0] in names
