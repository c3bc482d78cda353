"""A learner and an engine that only write down what is asked of them, and a training loop that runs with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import grpo
from shared.backend import Completion
from shared.config import RunConfig, validate
from shared.questions.prompts import PromptStyle
from shared.questions.record import question_at
from shared.tasks.prompts import prompt_tokens
from shared.training.loop import Output, train
from shared.training.rollouts import Sampled
from tests.support.exam import exam

QUESTIONS = exam(11)
METRICS = {"loss": 0.5, "kl": 0.01, "entropy": 1.5, "grad_norm": 0.2, "logprob_gap": 1e-6, "learning_rate": 1e-6}
LIMIT = 16


def exam_prompts(tokenizer) -> list[np.ndarray]:
    return prompt_tokens(tokenizer, QUESTIONS, style=PromptStyle(), rows=None, max_tokens=400, overlong="drop")[1]


class Engine:
    """Answers the right letter where the first random number is below `skill` (of the question); else a wrong one."""

    def __init__(self, events: list, tokenizer, prompts, skill=lambda question: 0.5):
        self.events, self.tokenizer, self.skill = events, tokenizer, skill
        self.by_prompt = {prompt.tobytes(): question for question, prompt in zip(QUESTIONS, prompts, strict=True)}
        self.calls: list[dict[str, Any]] = []
        self.version, self.whole_tensors = None, False

    def generate(self, prompts, sampling, numbers):
        questions = [self.by_prompt[np.asarray(prompt).tobytes()] for prompt in prompts]
        completions = [
            [self.complete(question, numbers[row, sample]) for sample in range(sampling.group_size)]
            for row, question in enumerate(questions)
        ]
        self.events.append("generate")
        self.calls.append(
            {
                "questions": questions,
                "sampling": sampling,
                "uniforms": numbers.copy(),
                "completions": completions,
                "version": self.version,
            }
        )
        return completions

    def complete(self, question, numbers) -> Completion:
        letter = question.answer if numbers[0] < self.skill(question) else "AB"[question.answer == "A"]
        # One token for each byte, which is not how the tokenizer would cut this text.
        tokens = [self.tokenizer.convert_tokens_to_ids(byte) for byte in f"\\boxed{{{letter}}}"]
        truncated = bool(numbers[1] < 0.25)
        more = [tokens[0]] * (LIMIT - len(tokens)) if truncated else [self.tokenizer.eos_token_id]
        ids = np.array(tokens + more, np.int32)
        return Completion(ids, -np.float32(numbers[2]) * np.arange(1, len(ids) + 1, dtype=np.float32), truncated)

    def sleep(self):
        self.events.append("sleep")

    def seconds(self):
        return {"prefill": 0.25, "decode": 0.5}

    def readable(self):
        return {"weight": 3}

    def digests(self, probes):
        return [f"{probe} {self.version}" for probe in probes]


class Learner:
    """Counts its updates; what it saves is the count."""

    def __init__(self, events: list, metrics=lambda update: {}):
        self.events, self.metrics = events, metrics
        self.updates = 0
        self.batches: list[grpo.GroupBatch] = []
        self.saved: dict[int, dict[str, int]] = {}

    @property
    def step(self):
        return self.updates

    def digests(self, probes):
        return [f"{probe} {self.updates}" for probe in probes]

    def logprobs(self, batch, which):
        self.events.append(f"score {which}")
        return np.where(batch.completion_mask > 0, {"policy": -1.0, "reference": -2.0}[which], 0.0).astype(np.float32)

    def update(self, batch):
        self.events.append("update")
        self.batches.append(batch)
        self.updates += 1
        return METRICS | self.metrics(self.updates)

    def sync_reference(self):
        self.events.append(f"sync {self.updates}")

    def publish(self, engine):
        self.events.append("publish")
        engine.version = self.updates

    def save(self, folder, step, extra):
        assert step == self.updates
        lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == step  # killed here, a run would not miss a line
        self.events.append(f"save {step}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latest.json").write_text(json.dumps([step, extra]))
        self.saved[step] = dict(extra)

    def finish_saves(self):
        self.events.append("finish saves")

    def restore(self, folder, step=None):
        path = folder / "latest.json"
        if not path.is_file():
            return None
        self.updates, extra = json.loads(path.read_text())
        return self.updates, extra


@dataclasses.dataclass
class Run:
    """What happened."""

    events: list[str]
    learner: Learner
    engine: Engine
    workdir: Path

    @property
    def asked(self) -> list[str]:
        return [question.id for call in self.engine.calls for question in call["questions"]]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]


def a_config(*, every: int = 1_000, **changes) -> RunConfig:
    top = {
        name: changes.pop(name) for name in ("store_trajectories", "learner", "rollout", "health") if name in changes
    }
    return validate(
        {
            "name": "run",
            "seed": 7,
            "grpo": {"group_size": 3, "questions_per_step": 2, "steps": 4} | changes,
            "checkpoint": {"every": every},
            **top,
            "rollout": {"max_prompt_tokens": 400, "max_new_tokens": LIMIT} | top.get("rollout", {}),
        }
    )


class Starter:
    """Runs the loop in one work directory; what goes wrong is for the test to see. `last` is the newest run."""

    def __init__(self, tokenizer, prompts: Sequence[np.ndarray], workdir: Path):
        self.tokenizer, self.prompts, self.workdir = tokenizer, prompts, workdir
        self.last: Run

    def __call__(
        self,
        config: RunConfig,
        *,
        skill=lambda question: 0.5,
        metrics=lambda update: {},
        any_process: Callable[[bool], bool] = bool,
    ) -> Run:
        events: list[str] = []
        engine = Engine(events, self.tokenizer, self.prompts, skill)
        self.last = run = Run(events, Learner(events, metrics), engine, self.workdir)
        source = Sampled(config, engine, self.tokenizer, QUESTIONS, self.prompts)
        checkpoints = self.workdir / "checkpoints"
        output = Output(workdir=self.workdir, checkpoints=checkpoints, any_process=any_process, progress=False)
        train(config, run.learner, source, output)
        return run


def in_order(config: RunConfig, count: int, first: int = 0) -> list[str]:
    return [question_at(QUESTIONS, config.seed, position).id for position in range(first, first + count)]
