"""A run that learns from the stored rollouts of another run, with either backend. It samples none of its own.

No engine is made, and nothing is evaluated. Policy, rewards, advantages and the engine's log-probabilities are the recorded
run's. Log-probabilities of the reference and of the old policy are this learner's own, and each line of metrics says how far
they are from the recorded ones. At the end `replay.json` in the work directory says how far the metrics of both runs are apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared import grpo
from shared.backend import Backend, Learner, check_tokens
from shared.config import CONFIG_FILE, RunConfig
from shared.errors import InputError
from shared.grpo import GroupBatch, completion_view
from shared.policy.families import MODEL_CONFIG
from shared.policy.tokenizer import embedding_rows
from shared.preparation import inputs
from shared.preparation.inputs import Digests, Inputs
from shared.questions import prompt_style
from shared.report import run_page
from shared.runs.policy import OWN_POLICY, check_policy, fetch_policy, policy_folder
from shared.runs.workdir import (
    MAY_CHANGE,
    REPLAY_FILE,
    Job,
    changed_fields,
    check_shared,
    claim,
    is_named,
    read_config,
)
from shared.storage import buckets, files
from shared.training import loop
from shared.training.loop import Round
from shared.training.metrics_log import METRICS_FILE, differences, differences_table, plain, read_metrics
from shared.training.trajectories import METADATA_FILE, TrajectoryReader

# The fields in which a replay may differ from the recorded run: how it is computed, and fields that change neither batches nor
# updates. Fewer `grpo.steps` replay the beginning; the learning rate still follows the recorded run's schedule.
MAY_DIFFER = MAY_CHANGE | {
    "name",
    "store_trajectories",
    "evaluation",
    "checkpoint",
    "data.source",
    "data.train",
    "data.valid",
    "model.path",
    "grpo.steps",
    "grpo.max_logprob_gap",
    "rollout.slots",
    "rollout.prefill_batch",
    "rollout.decode_steps",
    "learner.compute_dtype",
    "jax.moments_dtype",
    "learner.length_bucket",
}
ADVANTAGE_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Recording:
    """A run that stored its trajectories."""

    workdir: Path
    config: RunConfig
    reader: TrajectoryReader

    @classmethod
    def open(cls, path: Path) -> Recording:
        """The recording in a work directory, or in its folder of trajectories. Raises InputError where there is none."""
        if not path.is_dir():
            raise InputError(f"--replay={path}: no such directory; give the work directory of a run")
        folder = path if (path / METADATA_FILE).is_file() else path / "trajectories"
        reader = TrajectoryReader(folder)
        workdir = folder.resolve().parent if folder == path else path
        for name in (CONFIG_FILE, METRICS_FILE):
            if not (workdir / name).is_file():
                raise InputError(
                    f"--replay={path}: no {name} beside the trajectories; give the work directory of the recorded run"
                )
        return cls(workdir, read_config(workdir / CONFIG_FILE), reader)

    def check(self, config: RunConfig) -> None:
        """Raise InputError, naming the field or the step, where a run with `config` cannot be a replay of this one."""
        changed = [name for name in changed_fields(self.config, config) if not is_named(name, MAY_DIFFER)]
        if changed:
            raise InputError(
                f"--replay={self.workdir}: recorded with another config (it differs in {', '.join(changed[:5])}); "
                "give the recorded run's"
            )
        recorded = set(self.reader.steps())
        needed = range(0, config.steps, config.grpo.inner_steps)
        missing = next((step for step in needed if step not in recorded), None)
        if missing is not None:
            raise InputError(
                f"--replay={self.workdir}: its trajectories lack step {missing} of the {config.steps} asked for; let the "
                f"recorded run go on to its end, or replay its beginning with --config.grpo.steps={missing}"
            )

    def policy(self, config: RunConfig, workdir: Path) -> Path:
        """The model directory that the recorded run started from, or the one that `config` names in its place."""
        if config.model.path:
            check_policy(config)
            return policy_folder(config, workdir)
        policy = policy_folder(self.config, self.workdir)
        if not (policy / MODEL_CONFIG).is_file():
            raise InputError(f"{policy}: the policy that the recorded run started from is not there; put it back")
        return policy

    def digests(self, steps: int) -> Digests:
        """Digests of the files about the first `steps` optimizer steps. Those files hold the checksums of the arrays."""
        return inputs.of_files(self.reader.markers(range(0, steps, self.config.grpo.inner_steps)))

    def identity(self) -> dict[str, int]:
        """What tells this recording from another: the checksums of its first step's arrays."""
        return self.reader.checksums(0)


class Recorded:
    """Rounds as another run stored them (`shared.training.loop.Source`)."""

    gap_explanation = "its policy is not the one that the recording was made with, or it learns in another way"

    def __init__(self, recording: Recording, policy: Path) -> None:
        """`policy` is the model directory that learns. Raises InputError where its embedding lacks a token of the first step."""
        self._config, self._reader = recording.config, recording.reader
        self._rows = embedding_rows(policy)
        self._read(0)

    def publish(self, learner: Learner) -> None:
        """Do nothing: the next rounds are recorded already."""

    def next(self, step: int, position: int) -> Round:
        """The recorded round of `step`. Raises InputError where it is damaged or not whole."""
        recorded, rewards, ids = self._read(step)
        notes = self._reader.notes(step)
        if not {"described", "position", "tokens"} <= notes.keys():
            raise InputError(f"step {step} of the trajectories does not say what was sampled; record the run again")
        self._check_advantages(step, recorded, rewards, ids)
        return Round(
            batch=dataclasses.replace(recorded, old_logprobs=None, ref_logprobs=None),
            rewards=rewards,
            question_ids=ids,
            metrics=notes["described"],
            tokens=notes["tokens"],
            position=notes["position"],
            recorded=recorded,
        )

    def seconds(self) -> Mapping[str, float]:
        """See `shared.training.loop.Source`."""
        return {}

    def _read(self, step: int) -> tuple[GroupBatch, np.ndarray, list[str]]:
        recorded, rewards, ids = self._reader.read(step)
        if self._rows is not None:
            check_tokens(recorded.tokens[recorded.groups >= 0], f"step {step} of the trajectories", self._rows)
        return recorded, rewards, ids

    def _check_advantages(self, step: int, batch: GroupBatch, rewards: np.ndarray, ids: list[str]) -> None:
        """Raise InputError where the stored advantages are not those of the stored rewards: one of both was changed."""
        group = self._config.grpo.group_size
        real = np.array([bool(name) for name in ids])  # rows that hold a question
        mask = completion_view(batch.completion_mask, batch.layout)
        expected = np.zeros(len(mask))
        if real.any():
            advantages = grpo.advantages(rewards[real].reshape(-1, group), self._config.grpo.advantage_scale)
            expected[np.repeat(real, batch.layout.group)] = advantages.reshape(-1)
        stored = completion_view(batch.advantages, batch.layout)
        if not np.allclose(stored, expected[:, None] * mask, rtol=ADVANTAGE_TOLERANCE, atol=ADVANTAGE_TOLERANCE):
            raise InputError(
                f"step {step} of the trajectories: its advantages do not follow from its rewards; record the run again"
            )


def run(
    config: RunConfig,
    backend: Backend,
    workdir: Path,
    recording: Recording,
    *,
    progress: bool = True,
    wandb_project: str = "",
) -> dict[str, Any]:
    """Make the optimizer steps that are not made yet, and return how far the metrics are from the recorded run's.

    Every process calls it. Process 0 writes the files and returns the comparison; the others return an empty one, and read
    nothing of what it wrote. Raises InputError for a work directory that holds something else, and Stopped where a SIGTERM
    ends training early.
    """
    policy = recording.policy(config, workdir)
    job = Job.of(config, backend, workdir, progress=progress)
    config = job.config
    noted: Inputs | None = None
    if job.writes:
        noted = _claim(job, recording)
        noted.hold("recording", recording.reader.folder, recording.digests(config.steps))
        if not config.model.path:
            noted.hold(OWN_POLICY, policy, inputs.of_model(policy))
    backend.barrier()
    check_shared(backend, workdir, own_workdirs=bool(config.checkpoint.folder), fix="give checkpoint.folder")
    fetch_policy(job, noted)
    source = Recorded(recording, policy)
    style = prompt_style.recorded(recording.config, recording.workdir)
    if job.writes and style is not None:
        prompt_style.write(workdir, style)
    learner = backend.learner(
        config, policy, optimizer=config.optimizer, steps=recording.config.steps, reference=config.grpo.beta > 0
    )
    loop.train(config, learner, source, job.output(wandb_project))
    learner.finish_saves()
    if not job.is_trained():
        prompt_style.export(learner, job.trained, style, first=job.writes)
    comparison = _compared(workdir, recording) if job.writes else {}
    backend.barrier()
    return comparison


def _compared(workdir: Path, recording: Recording) -> dict[str, Any]:
    """Add to `replay.json` how far the metrics are from the recorded run's, and write the report; returns that file's content."""
    table = differences(read_metrics(recording.workdir / METRICS_FILE), read_metrics(workdir / METRICS_FILE))
    comparison = files.read_json_object(workdir / REPLAY_FILE) | {"differences": plain(table.to_dict("records"))}
    files.write_json(workdir / REPLAY_FILE, comparison)
    run_page.write_report(workdir, show_examples=False)
    return comparison


def started_from(config: RunConfig, workdir: Path) -> Path:
    """The model directory that a run, or a replay of one, started from."""
    if config.model.path or not (workdir / REPLAY_FILE).is_file():
        return policy_folder(config, workdir)
    recorded = Path(files.read_json_object(workdir / REPLAY_FILE, "recording")["recording"])
    return policy_folder(read_config(recorded / CONFIG_FILE), recorded)


def terminal_summary(comparison: Mapping[str, Any], workdir: Path) -> str:
    """How far each metric is from the recorded run's, for one screen. `comparison`: what `run` returns."""
    lines = [f"replay of {comparison['recording']}", "", differences_table(comparison["differences"]), ""]
    return "\n".join([*lines, f"figures  {workdir / REPLAY_FILE}", f"report   {workdir / run_page.REPORT_FILE}"])


def _claim(job: Job, recording: Recording) -> Inputs:
    """Make the folders of this run a replay of the recording, or see that they are; returns the digests noted of its inputs.

    Raises InputError for a folder that holds something else.
    """
    identity = recording.identity()
    unmarked = []
    for folder in (job.workdir, *job.other_folders):
        fix = "--workdir" if folder == job.workdir else "checkpoint.folder"
        replay_file = buckets.join(folder, REPLAY_FILE)
        if buckets.is_file(replay_file):
            earlier = buckets.read_json(replay_file)
            if not isinstance(earlier, dict) or earlier.get("first_step") != identity:
                other = earlier.get("recording") if isinstance(earlier, dict) else "unknown"
                raise InputError(f"{folder}: holds a replay of another recording ({other}); give another {fix}")
        elif buckets.is_file(buckets.join(folder, CONFIG_FILE)):
            raise InputError(f"{folder}: holds a run that is no replay; give another {fix}")
        else:
            unmarked.append(replay_file)
    for replay_file in reversed(unmarked):  # the work directory last: writing to a bucket may be refused
        buckets.write_json(replay_file, {"recording": str(recording.workdir.absolute()), "first_step": identity})
    return claim(job.config, job.workdir, *job.other_folders)
