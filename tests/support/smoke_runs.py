"""Runs of the smoke config that have ended, and work directories in which what comes before GRPO is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from shared.config import RunConfig, validate
from shared.storage import files
from tests.support.commands import REPOSITORY, Ended, apart

CONFIG = "--config=configs/smoke.py"
# A policy that knows the form of an answer, and a reward for ending one: the steps under test have something to learn.
WARM = (
    "--config.warmup.steps=40",
    "--config.warmup.worked_fraction=1.0",
    "--config.warmup.optimizer.learning_rate=0.005",
    "--config.grpo.reward_length=0.5",
)
STEPS = 6
MADE_BEFORE = (
    "data", "tokenizer", "initial", "warmup", "policy", "evaluation/before.parquet", "evaluation/engines.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has ended."""

    workdir: Path
    ended: Ended
    seconds: float

    @property
    def summary(self) -> dict:
        return files.read_json(self.workdir / "summary.json")

    @property
    def config(self) -> RunConfig:
        return validate(files.read_json(self.workdir / "config.json"))

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]


def evaluate(smoke: Run, out: Path, *flags: str, **variables: str) -> Ended:
    """Evaluate the trained model of a run on its held-out questions, as the run did."""
    rollout = smoke.config.rollout
    ended = apart(
        "evaluate",
        f"--model={smoke.workdir / 'trained'}",
        f"--questions={smoke.workdir / 'data' / 'questions' / 'valid.parquet'}",
        f"--out={out}",
        "--compute_dtype=float32",
        f"--max_prompt_tokens={rollout.max_prompt_tokens}",
        f"--max_new_tokens={rollout.max_new_tokens}",
        "--slots=16",
        "--bootstrap=200",
        *flags,
        **variables,
    )
    assert ended.code == 0, ended.err[-3_000:]
    return ended


def prepared(smoke: Run, workdir: Path) -> Path:
    """A work directory in which all that comes before GRPO has been done."""
    for name in MADE_BEFORE:
        source, target = smoke.workdir / name, workdir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    return workdir


def signal_after(
    lines: int,
    workdir: Path,
    commands: list[list[str]],
    variables: dict[str, str],
    number: signal.Signals,
    *,
    to: int,
    of_children: bool = False,
) -> list[Ended]:
    """Start the processes of a run and send one of them a signal as soon as its metrics have `lines` lines.

    `to` is that process's place in `commands`; with `of_children`, among what the first one starts.
    """
    return after(lines, workdir, commands, variables, lambda pid: os.kill(pid, number), to=to, of_children=of_children)


def after(
    lines: int,
    workdir: Path,
    commands: list[list[str]],
    variables: dict[str, str],
    act: Callable[[int], None],
    *,
    to: int,
    of_children: bool = False,
    within: float = 600,
) -> list[Ended]:
    """Like `signal_after`; what is done to the process of that id is `act`, and all must end `within` seconds of it."""
    metrics = workdir / "metrics.jsonl"
    started = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and all(process.poll() is None for process in started):
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.002)
        pids = children(started[0].pid) if of_children else [process.pid for process in started]
        act(pids[to])
        told = [process.communicate(timeout=within) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(process.returncode, out, err) for process, (out, err) in zip(started, told)]


def stopped_after(ended: Ended) -> int:
    """The step after which a run says that it stopped as asked."""
    assert ended.code == 0, ended.err[-3_000:]
    found = re.search(
        rf"^stopped as asked after step (\d+) of {STEPS}, which is saved; the same command goes on from there$",
        ended.out,
        re.MULTILINE,
    )
    assert found and "Traceback" not in ended.err, ended
    return int(found.group(1))


def children(pid: int) -> list[int]:
    """Processes that process `pid` has started, as Linux tells it."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_after(lines: int, workdir: Path, command: list[str], variables: dict[str, str]) -> None:
    """Start a run and kill it and all its processes, the hard way, as soon as its metrics have `lines` lines."""
    metrics = workdir / "metrics.jsonl"
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.002)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert metrics.read_bytes().count(b"\n") >= lines
    assert not (workdir / "trained").exists()
