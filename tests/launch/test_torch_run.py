"""The PyTorch backend drives the same run: one process or two, killed at any step, and stopped when its engine is stale."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shared.evaluation.answers import read_answers
from shared.questions.record import LETTERS, read_questions
from shared.storage import files
from shared.training.metrics_log import without_timings
from tests.support.commands import REPOSITORY, environment
from tests.support.smoke_runs import (
    CONFIG,
    STEPS,
    WARM,
    Run,
    evaluate,
    kill_after,
    prepared,
    signal_after,
    stopped_after,
)
from tests.support.workers import free_port

pytestmark = pytest.mark.slow

TORCH = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
HF = "--config.torch.rollout_engine=hf"
KILLED = [(1, 1), (3, 5)]  # ZeRO stage, lines of metrics after which everything is killed
# A run whose engine takes no weights any more after its second publish.
# A program whose engine never gets a right head.
WRONG = """
import sys
from creason_torch.rollout.hf import HfEngine
load = HfEngine._load
def wrong(self, weights):
    load(self, weights)
    self.head = self.head.roll(1, 0)
HfEngine._load = wrong
from launch import app, {program}
{program}.define_flags()
app.run({program}.main)
"""
STALE = """
import sys
from creason_torch.rollout.hf import HfEngine
load, calls = HfEngine._load, []
def stale(self, weights):
    calls.append(1)
    if len(calls) <= 2:
        load(self, weights)
    else:
        list(weights)
HfEngine._load = stale
from launch import app, train
train.define_flags()
app.run(train.main)
"""


def command(workdir: Path, *flags: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    started = [*launcher, "-m"] if processes > 1 else ["-m"]
    options = [CONFIG, *WARM, HF, *flags, f"--workdir={workdir}"]
    return [sys.executable, *started, "launch.train", "--backend=torch", *options]


def train(workdir: Path, *flags: str, processes: int = 1) -> Run:
    begin = time.monotonic()
    ended = subprocess.run(
        command(workdir, *flags, processes=processes), cwd=REPOSITORY, env=environment(**TORCH), capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4_000:]
    return Run(workdir, ended, time.monotonic() - begin)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return train(tmp_path_factory.mktemp("torch") / "run")


@pytest.fixture(scope="module")
def by_stage(smoke, tmp_path_factory):
    """The same run by two processes, on each ZeRO stage that is killed below."""
    return {
        stage: train(
            prepared(smoke, tmp_path_factory.mktemp(f"stage{stage}") / "run"),
            f"--config.torch.zero_stage={stage}",
            processes=2,
        )
        for stage in sorted({stage for stage, _ in KILLED})
    }


def test_the_run_is_that_of_the_other_backend_in_form(smoke):
    assert [line["step"] for line in smoke.lines] == list(range(STEPS))
    assert sum(line["grad_norm"] > 0 for line in smoke.lines) >= 4
    assert smoke.lines[0]["kl"] == pytest.approx(0, abs=1e-9) and smoke.lines[-1]["kl"] > 0
    assert all(line["ratio"] == 1 and line["logprob_gap"] < 1e-4 for line in smoke.lines)
    summary = smoke.summary
    assert summary["environment"]["backend"] == "torch"
    questions = read_questions(smoke.workdir / "data" / "questions" / "valid.parquet")
    assert summary["before"]["n"] == summary["after"]["n"] == len(questions)
    assert (smoke.workdir / "report.html").is_file()
    assert (smoke.workdir / "trained" / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", sorted({stage for stage, _ in KILLED}))
def test_two_processes_make_the_run_of_one(by_stage, smoke, stage):
    for ours, theirs in zip(by_stage[stage].lines, smoke.lines, strict=True):
        for name, value in without_timings(theirs).items():
            assert ours[name] == pytest.approx(value, rel=2e-3, abs=1e-4), (ours["step"], name)


@pytest.mark.parametrize(("stage", "lines"), KILLED)
def test_a_killed_run_ends_as_one_that_never_was(by_stage, smoke, tmp_path, stage, lines):
    whole = by_stage[stage]
    workdir = prepared(smoke, tmp_path / "run")
    flag = f"--config.torch.zero_stage={stage}"
    kill_after(lines, workdir, command(workdir, flag, processes=2), environment(**TORCH))
    again = train(workdir, flag, processes=2)
    assert [without_timings(line) for line in again.lines] == [without_timings(line) for line in whole.lines]
    weights = [(run.workdir / "trained" / "model.safetensors").read_bytes() for run in (again, whole)]
    assert weights[0] == weights[1]


def test_processes_of_which_one_is_asked_to_stop_save_together(by_stage, smoke, tmp_path):
    whole, flag = by_stage[3], "--config.torch.zero_stage=3"
    workdir = prepared(smoke, tmp_path / "run")
    started = [command(workdir, flag, processes=2)]
    [ended] = signal_after(3, workdir, started, environment(**TORCH), signal.SIGTERM, to=1, of_children=True)
    step = stopped_after(ended)
    assert 3 <= step < STEPS and ended.out.count("stopped as asked") == 1
    again = train(workdir, flag, processes=2)
    assert [without_timings(line) for line in again.lines] == [without_timings(line) for line in whole.lines]
    weights = [(run.workdir / "trained" / "model.safetensors").read_bytes() for run in (again, whole)]
    assert weights[0] == weights[1]


def test_a_run_goes_on_with_another_number_of_processes_and_another_stage(by_stage, smoke, tmp_path):
    """Its first steps by two processes under ZeRO-3, its others by one without sharding."""
    workdir = prepared(smoke, tmp_path / "run")
    begun = train(workdir, "--config.torch.zero_stage=3", processes=2)
    for name in ("trained", "evaluation/after.parquet", "summary.json", f"checkpoints/{STEPS}"):
        path = workdir / name
        files.remove(path)
    again = train(workdir)
    assert len(again.lines) == STEPS and again.config.torch.zero_stage == 0
    for ours, theirs in itertools.zip_longest(again.lines, begun.lines):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-5)
        assert ours["reward"] == theirs["reward"]


def test_an_engine_with_stale_weights_ends_the_run(smoke, tmp_path):
    workdir = prepared(smoke, tmp_path / "run")
    flags = ["--config.grpo.max_logprob_gap=1e-4", "--config.optimizer.learning_rate=0.01"]
    ended = subprocess.run(
        [sys.executable, "-c", STALE, "--backend=torch", CONFIG, *WARM, HF, *flags, f"--workdir={workdir}"],
        cwd=REPOSITORY, env=environment(**TORCH), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr[-4_000:]
    assert "the engine's model." in ended.stderr and "not the learner's" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (workdir / "trained").exists()
    assert not (workdir / "evaluation" / "before.parquet").exists()  # the same engine's answers


def test_an_engine_that_is_wrong_leaves_no_evaluation_and_another_one_makes_it(smoke, tmp_path):
    workdir = prepared(smoke, tmp_path / "run")
    files.remove(workdir / "evaluation")
    ended = subprocess.run(
        [sys.executable, "-c", WRONG.format(program="train"), *command(workdir)[3:]],
        cwd=REPOSITORY, env=environment(**TORCH), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr[-4_000:]
    assert "evaluation: the engine (torch HfEngine) differs from a plain forward pass by" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list((workdir / "evaluation").glob("*")) and not (workdir / "metrics.jsonl").exists()
    again = train(workdir)
    for run in (again, smoke):
        checked = files.read_json(run.workdir / "evaluation" / "engines.json")
        assert checked.keys() == {"before", "after"}
        for found in checked.values():
            assert found["engine"] == "torch HfEngine" and found["tokens"] > 4 and 0 <= found["gap"] < 1e-5
    assert again.summary["before"] == smoke.summary["before"] and again.summary["after"] == smoke.summary["after"]


def test_evaluating_with_an_engine_that_is_wrong_ends_before_an_answer_is_written(smoke, tmp_path):
    flags = [
        "--backend=torch", "--engine=hf", f"--model={smoke.workdir / 'trained'}", f"--out={tmp_path / 'out'}",
        f"--questions={smoke.workdir / 'data' / 'questions' / 'valid.parquet'}", "--compute_dtype=float32",
        "--max_prompt_tokens=288", "--max_new_tokens=24",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", WRONG.format(program="evaluate"), *flags],
        cwd=REPOSITORY, env=environment(**TORCH), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr[-4_000:]
    assert "differs from a plain forward pass by" in ended.stderr and "Traceback" not in ended.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_evaluating_the_trained_model_gives_the_same_answers_on_either_backend(smoke, tmp_path):
    answers = []
    for backend in ("jax", "torch"):
        evaluate(smoke, tmp_path / backend, f"--backend={backend}", **TORCH)
        answers.append((tmp_path / backend / "answers.parquet").read_bytes())
    assert answers[0] == answers[1] == (smoke.workdir / "evaluation" / "after.parquet").read_bytes()


def test_a_forced_choice_is_the_same_on_either_backend(smoke, tmp_path):
    """The same letters and, up to rounding, probabilities; and what was boxed on the way is what `boxed` counts."""
    forced = ["--protocol=forced_choice"]
    folders = [tmp_path / "jax", tmp_path / "torch"]
    evaluate(smoke, folders[0], "--backend=jax", *forced, **TORCH)
    evaluate(smoke, folders[1], "--backend=torch", "--engine=hf", *forced, **TORCH)
    jax, torch = (read_answers(folder / "answers.parquet") for folder in folders)
    for ours, theirs in zip(jax, torch, strict=True):
        assert dataclasses.replace(ours, probabilities=()) == dataclasses.replace(theirs, probabilities=())
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=0, atol=1e-5)
        assert ours.predicted == LETTERS[int(np.argmax(ours.probabilities))]
    after = (smoke.workdir / "evaluation" / "after.parquet").read_bytes()
    assert all((folder / "boxed.parquet").read_bytes() == after for folder in folders)
    summary = files.read_json(folders[0] / "summary.json")
    assert summary["boxed"]["accuracy"] == smoke.summary["after"]["accuracy"] and summary["answered"] == 1
    for folder in folders:  # what the engine says of letters was compared with a plain pass
        checked = files.read_json(folder / "summary.json")["engine"]
        assert checked["letters"] == 5 and 0 <= checked["letters_gap"] <= checked["bound"] == 1e-3
    assert len({answer.predicted for answer in jax}) > 1
