"""The one GRPO training loop. It drives either backend through `shared.backend`'s protocols and holds no tensor of theirs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared import grpo
from shared.backend import Completion, Learner, RolloutEngine, Sampling
from shared.config import RunConfig
from shared.grpo import GroupBatch, GroupLayout
from shared.questions.prompts import decode, opens_reasoning
from shared.questions.record import Question, question_at
from shared.randomness import uniforms
from shared.tasks import rewards
from shared.training import health, published
from shared.training.metrics_log import MetricsWriter
from shared.training.progress import StepBar
from shared.training.stopping import Stopped, StopRequest
from shared.training.trajectories import TrajectoryWriter

REFILL_ROUNDS = 3  # further batches of questions asked for when groups have equal rewards


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Groups of completions with their rewards `[groups, G]`, in total and by term, and whether each has a readable answer."""

    questions: list[Question]
    prompts: list[np.ndarray]
    completions: list[list[Completion]]
    rewards: np.ndarray
    terms: dict[str, np.ndarray]
    answered: np.ndarray

    def chosen(self, index: np.ndarray) -> Rollouts:
        """The rollouts of the groups in `index`."""
        return Rollouts(
            [self.questions[i] for i in index],
            [self.prompts[i] for i in index],
            [self.completions[i] for i in index],
            self.rewards[index],
            {name: values[index] for name, values in self.terms.items()},
            self.answered[index],
        )

    def joined(self, other: Rollouts) -> Rollouts:
        """These and `other`'s."""
        return Rollouts(
            self.questions + other.questions,
            self.prompts + other.prompts,
            self.completions + other.completions,
            np.concatenate([self.rewards, other.rewards]),
            {name: np.concatenate([values, other.terms[name]]) for name, values in self.terms.items()},
            np.concatenate([self.answered, other.answered]),
        )


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
        """Count time that was measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def report(self, tokens: int) -> dict[str, float]:
        """Fields for a metrics line; `tokens` were read or written in this time."""
        total = time.perf_counter() - self.begin
        known = {f"seconds_{name}": value for name, value in self.seconds.items()}
        return {**known, "seconds_total": total, "tokens_per_second": tokens / total}


@dataclasses.dataclass(frozen=True)
class Round:
    """What is learned from in `inner_steps` optimizer steps, and what is noted of it.

    `rewards` `[rows, layout.group]` and `question_ids` belong to the batch's rows, 0 and "" in empty ones. `described` is of all
    that was sampled, `tokens` were read or written for it. `recorded` is the batch as another run scored it, if one did.
    """

    batch: GroupBatch
    rewards: np.ndarray
    question_ids: list[str]
    described: dict[str, float]
    tokens: int
    position: int  # the next one in the order of questions
    recorded: GroupBatch | None = None


class Source(Protocol):
    """Where the rounds of a run come from."""

    gap_means: str  # what it says of a run if the learner's log-probabilities and the rollouts' part

    def publish(self, learner: Learner) -> None:
        """Later rounds are those of the learner's weights."""
        ...

    def next(self, step: int, position: int) -> Round:
        """The round that begins with optimizer step `step`, at `position` in the order of questions."""
        ...

    def seconds(self) -> Mapping[str, float]:
        """Time spent since the last call, by phase."""
        ...


class Sampled:
    """Rounds sampled from the engine, each with the newest weights."""

    gap_means = "the engine's weights or caches are stale"

    def __init__(
        self,
        config: RunConfig,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerFast,
        questions: Sequence[Question],
        prompts: Sequence[np.ndarray],
        agreed: Callable[[bool], bool] = bool,
    ) -> None:
        """`prompts` are the token ids of `questions`; `agreed`: `Backend.agreed`, where there are several processes."""
        self._config, self._engine, self._tokenizer, self._questions = config, engine, tokenizer, questions
        self._agreed = agreed
        self._prompts = {question.id: prompt for question, prompt in zip(questions, prompts, strict=True)}

    def publish(self, learner: Learner) -> None:
        """See `Source`."""
        published.publish(learner, self._engine, agreed=self._agreed)

    def next(self, step: int, position: int) -> Round:
        """See `Source`."""
        config = self._config
        rollouts, sampled, position = collect(
            config, self._engine, self._tokenizer, self._questions, self._prompts, step, position
        )
        self._engine.sleep()
        batch = make_batch(config, rollouts)
        missing = config.grpo.questions_per_step - len(rollouts.questions)
        ids = [question.id for question in rollouts.questions] + [""] * missing
        scored = np.pad(rollouts.rewards, ((0, missing), (0, 0)))
        if batch.layout.group == 1:
            ids = [name for name in ids for _ in range(config.grpo.group_size)]
            scored = scored.reshape(-1, 1)
        return Round(batch, scored, ids, describe(sampled, config), _tokens_of(sampled), position)

    def seconds(self) -> Mapping[str, float]:
        """See `Source`."""
        return self._engine.seconds()


def train(
    config: RunConfig,
    learner: Learner,
    source: Source,
    workdir: Path,
    *,
    checkpoints: Path | str = "",
    first: bool = True,
    agreed: Callable[[bool], bool] = bool,
    progress: bool = True,
    wandb_project: str = "",
) -> None:
    """Train `learner` from its newest checkpoint, or from its weights, to `config.steps` optimizer steps.

    Writes metrics, checkpoints and, if the config asks for them, trajectories: into `workdir`, the checkpoints into
    `checkpoints` where it is given.
    With several processes each runs this loop on the whole of every batch, and so decides the same; `first` says which of
    them writes, and by `agreed` they stop together. Raises Stopped after the step in which any of them gets a SIGTERM,
    SyncError where engine and learner disagree beyond the bound or the engine holds other weights than the learner's,
    TrainingError where the loss is not finite or a check of `shared.training.health` stops the run.
    """
    checkpoints = checkpoints or workdir / "checkpoints"
    restored = learner.restore(checkpoints)
    step, noted = restored or (0, {"position": 0})
    position, watch = noted["position"], health.Watch(config, noted)
    bar = StepBar(total=config.steps, initial=step, description="GRPO", shown=progress)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        request = stack.enter_context(StopRequest())
        writer = None
        if first:
            writer = stack.enter_context(
                MetricsWriter(workdir, step, wandb_project=wandb_project, run_name=config.name)
            )
        if step < config.steps:
            source.publish(learner)
        phases = Phases()
        while step < config.steps:
            found = source.next(step, position)
            position = found.position
            phases.add(source.seconds())
            batch = _scored(config, learner, found.batch, phases)
            if config.store_trajectories and first:
                _store(workdir, step, batch, found)
            described = {**found.described, **recorded_gaps(batch, found.recorded)}
            tokens = found.tokens
            for inner in range(config.grpo.inner_steps):
                with phases("update"):
                    metrics = learner.update(batch)
                watch.check_update(step, metrics, source.gap_means)
                step += 1
                if config.grpo.ref_sync_steps and step % config.grpo.ref_sync_steps == 0:
                    learner.sync_reference()
                ended = step == config.steps
                last = ended or inner + 1 == config.grpo.inner_steps
                if last:
                    with phases("publish"):
                        source.publish(learner)
                line = {**metrics, **described}
                if writer is not None:
                    writer.write(step - 1, {**line, **phases.report(tokens)})
                phases, tokens = Phases(), 0
                bar.set_postfix(health.live(line), refresh=False)
                bar.update()
                for warning in watch.see(step - 1, line) if last else ():
                    if first:
                        tqdm.write(f"warning: {warning}")
                due = step // config.checkpoint.every > (step - inner - 1) // config.checkpoint.every
                stop = last and agreed(request.made)
                if last and (due or ended or stop):
                    # After the step's line: a run killed in between writes that line twice, never not at all.
                    with phases("checkpoint"):
                        learner.save(checkpoints, step, {"position": position, **watch.counts()})
                if stop:
                    learner.finish_saves()
                    raise Stopped(
                        f"stopped as asked after step {step} of {config.steps}, which is saved; the same command goes on "
                        "from there"
                    )
                if ended:
                    break


def collect(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Mapping[str, np.ndarray],
    step: int,
    position: int,
) -> tuple[Rollouts, Rollouts, int]:
    """Rollouts to learn from, all that were sampled, and the next position in the order of questions.

    Groups with equal rewards are kept, dropped, or replaced by further questions, as the config says.
    """
    wanted = config.grpo.questions_per_step
    used = sampled = sample(config, engine, tokenizer, _next(config, questions, position), prompts, step, position)
    position += wanted
    if config.grpo.uniform_groups == "keep":
        return used, sampled, position
    used = used.chosen(np.flatnonzero(~grpo.uniform_groups(used.rewards)))
    rounds = REFILL_ROUNDS if config.grpo.uniform_groups == "refill" else 0
    while rounds and len(used.questions) < wanted:
        more = sample(config, engine, tokenizer, _next(config, questions, position), prompts, step, position)
        position += wanted
        rounds -= 1
        sampled = sampled.joined(more)
        used = used.joined(more.chosen(np.flatnonzero(~grpo.uniform_groups(more.rewards))))
    return used.chosen(np.arange(min(wanted, len(used.questions)))), sampled, position


def sample(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    prompts: Mapping[str, np.ndarray],
    step: int,
    position: int,
) -> Rollouts:
    """One group of completions for each question, scored."""
    rollout, group = config.rollout, config.grpo.group_size
    sampling = Sampling(
        group_size=group,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
    )
    # Keyed by the position in the order of questions too: a refill may meet a question again within a step.
    keys = [(config.seed, "sample", step, position + index, q.id) for index, q in enumerate(questions)]
    numbers = np.stack([[uniforms(rollout.max_new_tokens, *key, i) for i in range(group)] for key in keys])
    ids = [prompts[question.id] for question in questions]
    completions = engine.generate(ids, sampling, numbers)
    inside = [opens_reasoning(tokenizer, prompt) for prompt in ids]
    # Tokens are decoded for this only, and never encoded again.
    texts = [[decode(tokenizer, completion.tokens) for completion in samples] for samples in completions]
    terms = [
        [
            score_completion(config, question, text, completion, thinking=thinking)
            for text, completion in zip(written, samples, strict=True)
        ]
        for question, thinking, written, samples in zip(questions, inside, texts, completions, strict=True)
    ]
    # A task's reward names its own terms; what a completion's reward leaves out is 0.
    names = dict.fromkeys(name for samples in terms for each in samples for name in each)
    by_term = {name: np.array([[each.get(name, 0.0) for each in samples] for samples in terms]) for name in names}
    totals = np.array([[rewards.total(each) for each in samples] for samples in terms])
    answered = np.array(
        [
            [rewards.letter_of(question, text, config.grpo, thinking=thinking) != "" for text in written]
            for question, thinking, written in zip(questions, inside, texts, strict=True)
        ]
    )
    return Rollouts(questions, ids, completions, totals, by_term, answered)


def score_completion(
    config: RunConfig, question: Question, text: str, completion: Completion, *, thinking: bool = False
) -> dict[str, float]:
    """Reward terms of one completion, which reads `text`. `thinking`: its prompt ends inside the model's reasoning."""
    return rewards.score(
        question,
        text,
        tokens=len(completion.tokens),
        truncated=completion.truncated,
        config=config.grpo,
        max_new_tokens=config.rollout.max_new_tokens,
        thinking=thinking,
    )


def make_batch(config: RunConfig, rollouts: Rollouts) -> GroupBatch:
    """The rollouts as arrays, with as many rows as a full step has, so that every step has one shape."""
    tokens = [[completion.tokens for completion in samples] for samples in rollouts.completions]
    group = config.grpo.group_size
    truncated = np.array([[c.truncated for c in samples] for samples in rollouts.completions], bool).reshape(-1, group)
    empty = np.zeros((0, group))
    batch = grpo.pack(
        rollouts.prompts,
        tokens,
        layout_of(config, rollouts),
        advantages=grpo.advantages(rollouts.rewards, config.grpo.advantage_scale) if tokens else empty,
        completion_masks=grpo.completion_masks(tokens, truncated, mask_truncated=config.grpo.mask_truncated),
        rollout_logprobs=[[completion.logprobs for completion in samples] for samples in rollouts.completions],
    )
    batch = grpo.pad_rows(batch, config.grpo.questions_per_step)
    return batch if config.learner.group_layout else grpo.separate_rows(batch)


def layout_of(config: RunConfig, rollouts: Rollouts) -> GroupLayout:
    """The row's layout: the configured limits, or the batch's own lengths rounded up to `learner.length_bucket`."""
    prompt, completion = config.rollout.max_prompt_tokens, config.rollout.max_new_tokens
    bucket = config.learner.length_bucket
    if bucket and rollouts.prompts:
        longest = max(map(len, rollouts.prompts))
        written = max(len(c.tokens) for samples in rollouts.completions for c in samples)
        prompt = min(prompt, math.ceil(longest / bucket) * bucket)
        completion = min(completion, math.ceil(written / bucket) * bucket)
    return GroupLayout(prompt=prompt, group=config.grpo.group_size, completion=completion)


def describe(sampled: Rollouts, config: RunConfig) -> dict[str, float]:
    """What the rollouts look like, for the log."""
    completions = [completion for samples in sampled.completions for completion in samples]
    return {
        "reward": float(sampled.rewards.mean()),
        "reward_std": float(sampled.rewards.std()),
        **{f"reward_{name}": float(values.mean()) for name, values in sampled.terms.items()},
        "answered": float(sampled.answered.mean()),
        "uniform_groups": float(grpo.uniform_groups(sampled.rewards).mean()),
        "completion_length": float(np.mean([len(completion.tokens) for completion in completions])),
        "truncated": float(np.mean([completion.truncated for completion in completions])),
        "questions": len(sampled.questions),
    }


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


def _next(config: RunConfig, questions: Sequence[Question], position: int) -> list[Question]:
    return [question_at(questions, config.seed, position + i) for i in range(config.grpo.questions_per_step)]


def _scored(config: RunConfig, learner: Learner, batch: GroupBatch, phases: Phases) -> GroupBatch:
    """The batch with the log-probabilities that the objective needs beside the policy's own."""
    with phases("scoring"):
        if config.grpo.beta > 0:
            batch = dataclasses.replace(batch, ref_logprobs=learner.logprobs(batch, "reference"))
        if config.grpo.inner_steps > 1:
            batch = dataclasses.replace(batch, old_logprobs=learner.logprobs(batch, "policy"))
    return batch


def _tokens_of(sampled: Rollouts) -> int:
    written = sum(len(completion.tokens) for samples in sampled.completions for completion in samples)
    return sum(map(len, sampled.prompts)) + written


def _store(workdir: Path, step: int, batch: GroupBatch, found: Round) -> None:
    writer = TrajectoryWriter(workdir / "trajectories", rows_per_step=batch.tokens.shape[0], layout=batch.layout)
    notes = {"described": found.described, "position": found.position, "tokens": found.tokens}
    writer.append(step, batch, found.rewards, found.question_ids, notes=notes)
