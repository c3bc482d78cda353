"""The one GRPO training loop. It drives either backend through `shared.backend`'s protocols and holds no tensor of theirs."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from shared.backend import Learner
from shared.config import RunConfig
from shared.grpo import GroupBatch
from shared.training import health
from shared.training.metrics_log import MetricsWriter
from shared.training.progress import StepBar
from shared.training.stopping import Stopped, StopRequest
from shared.training.trajectories import TrajectoryWriter


@dataclasses.dataclass(frozen=True)
class Round:
    """The rollouts that `inner_steps` optimizer steps learn from, and what is noted of them.

    `rewards` `[rows, layout.group]` and `question_ids` belong to the batch's rows, 0 and "" in empty ones. `metrics` are of all
    completions that were sampled for it; `tokens` were read or written to sample them. `recorded` is the batch as another run
    scored it, in a replay.
    """

    batch: GroupBatch
    rewards: np.ndarray
    question_ids: list[str]
    metrics: dict[str, float]
    tokens: int
    position: int  # of the next round, in the order of questions
    recorded: GroupBatch | None = None


class Source(Protocol):
    """Where the rounds of a run come from."""

    gap_explanation: str  # why the log-probabilities of learner and rollouts may differ too much, for an error message

    def publish(self, learner: Learner) -> None:
        """Sample later rounds with the learner's weights."""
        ...

    def next(self, step: int, position: int) -> Round:
        """The round that begins with optimizer step `step`, at `position` in the order of questions."""
        ...

    def seconds(self) -> Mapping[str, float]:
        """Seconds spent since the last call, by phase."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where a training writes, and which of several processes writes.

    Every process runs the loop on whole batches, so all come to the same decisions.
    """

    workdir: Path
    checkpoints: Path | str  # folder, or address in a bucket
    writes: bool = True  # one process writes metrics and trajectories; all save their part of a checkpoint
    any_process: Callable[[bool], bool] = bool  # `Backend.any_process`, where there are several
    progress: bool = True  # show a progress bar
    wandb_project: str = ""


class Phases:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - begin})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count seconds that were measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def report(self, tokens: int) -> dict[str, float]:
        """Fields for a metrics line; `tokens` were read or written in this time."""
        total = time.perf_counter() - self.begin
        by_phase = {f"seconds_{name}": value for name, value in self.seconds.items()}
        return {**by_phase, "seconds_total": total, "tokens_per_second": tokens / total}


def train(config: RunConfig, learner: Learner, source: Source, output: Output) -> None:
    """Train `learner` from its newest checkpoint, or from its weights, to `config.steps` optimizer steps.

    Writes metrics, checkpoints and, if the config asks for them, trajectories. Every process calls it. Raises Stopped after the
    step in which any process gets a SIGTERM, SyncError where engine and learner disagree beyond the bound or the engine holds
    other weights than the learner's, TrainingError where the loss is not finite or a check of `shared.training.health` stops
    the run.
    """
    step, saved = learner.restore(output.checkpoints) or (0, {"position": 0})
    with contextlib.ExitStack() as stack:
        bar = StepBar(total=config.steps, initial=step, description="GRPO", shown=output.progress)
        stack.enter_context(bar)
        stop_request = stack.enter_context(StopRequest())
        writer = None
        if output.writes:
            writer = stack.enter_context(
                MetricsWriter(output.workdir, step, wandb_project=output.wandb_project, run_name=config.name)
            )
        if step < config.steps:
            source.publish(learner)
        training = _Training(
            config, learner, source, output, bar, stop_request, writer,
            watch=health.Watch(config, saved), step=step, position=saved["position"], phases=Phases(),
        )  # fmt: skip
        while training.step < config.steps:
            training.learn_from(source.next(training.step, training.position))


@dataclasses.dataclass
class _Training:
    """A training that goes on: `step` optimizer steps are made, and the next round is at `position` in the order of questions."""

    config: RunConfig
    learner: Learner
    source: Source
    output: Output
    bar: StepBar
    stop_request: StopRequest
    writer: MetricsWriter | None
    watch: health.Watch
    step: int
    position: int
    phases: Phases  # of the step that is being made

    def learn_from(self, rollouts: Round) -> None:
        """`inner_steps` optimizer steps on one round, fewer where the run ends before; then what is due between two rounds."""
        self.position = rollouts.position
        self.phases.add(self.source.seconds())
        with self.phases("scoring"):
            batch = with_logprobs(self.config, self.learner, rollouts.batch)
        if self.config.store_trajectories and self.output.writes:
            _store(self.output.workdir, self.step, batch, rollouts)
        round_metrics = {**rollouts.metrics, **recorded_gaps(batch, rollouts.recorded)}
        first_step = self.step
        end_step = min(first_step + self.config.grpo.inner_steps, self.config.steps)
        metrics: dict[str, float] = {}
        while self.step < end_step:
            tokens = rollouts.tokens if self.step == first_step else 0
            metrics = self._optimizer_step(batch, round_metrics, tokens, publish=self.step + 1 == end_step)
        self._end_round(first_step, metrics)

    def _optimizer_step(
        self, batch: GroupBatch, round_metrics: Mapping[str, float], tokens: int, *, publish: bool
    ) -> dict[str, float]:
        """One update with its line of metrics, which is returned without times. `publish`: the engine takes the new weights.

        `tokens` were read or written for the rollouts since the line before.
        """
        with self.phases("update"):
            update_metrics = self.learner.update(batch)
        self.watch.check_update(self.step, update_metrics, self.source.gap_explanation)
        self.step += 1
        sync_steps = self.config.grpo.ref_sync_steps
        if sync_steps and self.step % sync_steps == 0:
            self.learner.sync_reference()
        if publish:
            with self.phases("publish"):
                self.source.publish(self.learner)
        metrics = {**update_metrics, **round_metrics}
        if self.writer is not None:
            self.writer.write(self.step - 1, {**metrics, **self.phases.report(tokens)})
        self.phases = Phases()
        self.bar.set_postfix(health.bar_values(metrics), refresh=False)
        self.bar.update()
        return metrics

    def _end_round(self, first_step: int, metrics: Mapping[str, float]) -> None:
        """Say what is not well, and save where that is due. Raises Stopped where any process was asked to stop.

        `first_step` is the first step of the round, `metrics` are those of its last one.
        """
        for warning in self.watch.count_step(self.step - 1, metrics):
            if self.output.writes:
                tqdm.write(f"warning: {warning}")
        every = self.config.checkpoint.every
        passes_checkpoint = self.step // every > first_step // every
        run_is_complete = self.step == self.config.steps
        asked_to_stop = self.output.any_process(self.stop_request.made)
        if passes_checkpoint or run_is_complete or asked_to_stop:
            # After the step's line: a run killed in between writes that line twice, never not at all.
            with self.phases("checkpoint"):
                extra = {"position": self.position, **self.watch.counts()}
                self.learner.save(self.output.checkpoints, self.step, extra)
        if asked_to_stop:
            self.learner.finish_saves()
            raise Stopped(
                f"stopped as asked after step {self.step} of {self.config.steps}, which is saved; the same command goes on "
                "from there"
            )


def with_logprobs(config: RunConfig, learner: Learner, batch: GroupBatch) -> GroupBatch:
    """The batch with the log-probabilities that the objective needs beside the updated policy's own.

    Those of the reference where there is one, those of the policy before the first update where there are several updates.
    """
    if config.grpo.beta > 0:
        batch = dataclasses.replace(batch, ref_logprobs=learner.logprobs(batch, "reference"))
    if config.grpo.inner_steps > 1:
        batch = dataclasses.replace(batch, old_logprobs=learner.logprobs(batch, "policy"))
    return batch


def recorded_gaps(batch: GroupBatch, recorded: GroupBatch | None) -> dict[str, float]:
    """The largest |difference| of scored log-probabilities, in nats, from those that another run's learner stored."""
    if recorded is None:
        return {}
    pairs = {name: (getattr(batch, name), getattr(recorded, name)) for name in ("ref_logprobs", "old_logprobs")}
    return {
        f"recorded_{name}_gap_max": float(np.abs(ours - theirs).max(initial=0.0, where=batch.completion_mask > 0))
        for name, (ours, theirs) in pairs.items()
        if ours is not None and theirs is not None
    }


def _store(workdir: Path, step: int, batch: GroupBatch, rollouts: Round) -> None:
    """Write a round into the folder of trajectories, under its first step."""
    writer = TrajectoryWriter(workdir / "trajectories", rows_per_step=batch.tokens.shape[0], layout=batch.layout)
    notes = {"described": rollouts.metrics, "position": rollouts.position, "tokens": rollouts.tokens}
    writer.append(step, batch, rollouts.rewards, rollouts.question_ids, notes=notes)
